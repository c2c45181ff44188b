"""A second machine: an agent in a network namespace, with a store of its own and nothing of the first one's disk. It
runs what was built elsewhere, out of the registry."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.docker.sandboxes import shared_base_root
from tests.support.eventually import eventually
from tests.support.oci_registry import an_oci_registry
from tests.support.platform import SQUALL, Platform

from squall_bus import connect
from squall_contracts import topology
from squall_contracts.nodes import NODES, NodeFact
from squall_images import bases
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.timeout(300)]
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
NODE = "far"
CANARY = "canary-5d21"
HOST, GUEST = "10.214.88.1", "10.214.88.2"
PROGRAM = """
import squall

image = squall.Image.debian_slim().run_commands("test -n \\"$TOKEN\\" && echo built elsewhere > /made", secrets=[
    squall.Secret.from_local_environ(["TOKEN"])
])
app = squall.App("far")


@app.function(image=image, isolation="sandbox")
def made():
    with open("/made") as file:
        return file.read().strip()


@app.local_entrypoint()
def main():
    call = made.spawn()
    print(call.get(), call.object_id)
"""


@contextlib.contextmanager
def a_machine() -> Iterator[list[str]]:
    """Words that a command begins with to run there; it and this machine see each other by one cable."""
    name = f"sqt-{secrets.token_hex(3)}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{HOST}/24", "dev", name)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", f"{GUEST}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield ["nsenter", f"--net=/run/netns/{name}"]  # `ip netns exec` would hide the control groups
    finally:
        ip("netns", "delete", name)
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


@contextlib.asynccontextmanager
async def on_the_cable(url: str) -> AsyncIterator[str]:
    """`host:port` of the cable where a service of this machine's loopback is reached."""
    host, port = url.rpartition("/")[2].rsplit(":", 1)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                target.write(chunk)
                await target.drain()
        target.close()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(on_connection, HOST, 0)
    try:
        yield f"{HOST}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@contextlib.asynccontextmanager
async def an_agent(machine: list[str], platform: Platform, store: Path, **settings: str) -> AsyncIterator[None]:
    """On that machine."""
    bus = platform.bus_settings()
    environment = {
        **platform.neutral_environment(),
        "SQUALL_BUS_USER": str(bus.user),
        "SQUALL_BUS_PASSWORD": str(bus.password),
        "SQUALL_GPU_AGENT_NODE": NODE,
        "SQUALL_GPU_AGENT_DATA": str(store),
        "SQUALL_GPU_AGENT_BACKEND": "sandbox",
        "SQUALL_GPU_AGENT_SANDBOX_NETWORK": "false",
        "SQUALL_GPU_AGENT_TOKEN": (platform.data / "service-token").read_text().strip(),
        "SQUALL_GPU_AGENT_HEALTH_PORT": "0",
        **settings,
    }
    program = Path(sys.executable).with_name("squall-gpu-agent")
    with (store.parent / "agent.log").open("wb") as log:
        agent = subprocess.Popen([*machine, str(program)], env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        agent.terminate()
        try:
            await asyncio.to_thread(agent.wait, 40)
        finally:
            agent.kill()
            agent.wait()


async def images_of(platform: Platform, node: str) -> tuple[str, ...]:
    """What a node says that it has."""
    async with connect(platform.bus_settings(), topology.build("local", 4)) as bus:
        entry = await bus.kv(NODES).get(node)
        return () if entry is None else NodeFact.decode(entry.value).images


async def test_a_function_runs_where_its_image_was_not_built(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program, store = tmp_path / "far.py", tmp_path / "far"
    program.write_text(PROGRAM)
    root = await asyncio.to_thread(shared_base_root, tmp_path_factory)
    with a_machine() as machine:
        async with an_oci_registry(tmp_path / "registry", HOST) as registry:
            building = {"SQUALL_BUILDER_FORMATS": "layers", "SQUALL_BUILDER_REGISTRY": registry}
            platform = Platform(processes=True, environment=building)
            folder = LayerFolder(platform.data / "images")
            folder.open()
            await asyncio.to_thread(bases.register, folder, f"debian_slim:{OWN}", root, Configuration())
            async with contextlib.AsyncExitStack() as running:
                await asyncio.to_thread(running.enter_context, platform)
                bus, gateway = platform.bus_settings().url, platform.url
                async with on_the_cable(bus) as bus_there, on_the_cable(gateway) as gateway_there:
                    there = {
                        "SQUALL_BUS_URL": f"nats://{bus_there}",
                        "SQUALL_GPU_AGENT_GATEWAY_URL": f"http://{gateway_there}",
                        "SQUALL_GPU_AGENT_REGISTRY": registry,
                    }
                    async with an_agent(machine, platform, store, **there):
                        try:
                            await _runs_there(platform, program, store)
                        except BaseException:
                            print((tmp_path / "agent.log").read_text(errors="replace")[-4000:])
                            raise


async def _runs_there(platform: Platform, program: Path, store: Path) -> None:
    running = platform.popen(SQUALL, "run", program, TOKEN=CANARY)
    out, err = await asyncio.to_thread(running.communicate, timeout=200)
    found = re.search(r"built elsewhere (fc-\w+)", out)
    assert found, out + err
    layers = [path.name for path in (store / "images" / "layers").iterdir()]
    assert len(layers) == 3, "the base, its byte-code and the step came by the registry"
    trace = (await asyncio.to_thread(platform.squall, "trace", found[1])).stdout
    assert "image.pull" in trace, trace
    (image,) = [path.stem for path in (store / "images" / "images").glob("im-*.json")]

    async def told() -> bool:
        return image in await images_of(platform, NODE)

    await eventually(told, within_s=20)
    for path in (*platform.data.rglob("*"), *store.rglob("*"), *(store.parent / "registry").rglob("*")):
        if path.is_file() and not path.is_symlink() and os.stat(path).st_size < 8 << 20:
            assert CANARY.encode() not in path.read_bytes(), path
