"""A region on servers that somebody else runs: three nats-servers that replicate, S3 and a registry of images, each in
a container. What docs/howto/bus.md tells operators to type is what is typed here."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import HttpWaitStrategy
from tests.docker.sandboxes import shared_base_root
from tests.support import engine
from tests.support.platform import SQUALL, eventually

from squall_images import bases
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder
from squall_verify.platform import answers
from squall_verify.settings import neutral_environment

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
BIN = Path(sys.executable).parent
NATS, S3, REGISTRY = (f"squall-test/{name}:local" for name in ("nats", "s3", "registry"))
NAMES = ("n1", "n2", "n3")
NODE = "gpu-1"
KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret"}
STOP_S = 40
PROGRAM = """
import squall

app = squall.App("rented")
image = squall.Image.debian_slim().run_commands("echo far > /made")


@app.function(image=image, isolation="sandbox", max_containers=2)
def made(data: bytes) -> bytes:
    with open("/made") as file:
        assert file.read() == "far\\n"
    if len(data) > 100_000 and data[0] == 100:
        print("made 100")
    return data[::-1]


@app.local_entrypoint()
def main(calls: int):
    sizes = [200_000 if number % 10 == 0 else 10 for number in range(calls)]
    answers = list(made.map([bytes([number % 256]) + bytes(size) for number, size in enumerate(sizes)]))
    wanted = [bytes(size) + bytes([number % 256]) for number, size in enumerate(sizes)]
    print("right:", sum(answer == want for answer, want in zip(answers, wanted)))
"""


@pytest.fixture(scope="module", autouse=True)
def of_this_machine() -> Iterator[None]:
    """The library's helper container would come from a registry; and tests see loopback, not the engine's bridge."""
    config = testcontainers_config
    before = config.ryuk_disabled, config.connection_mode_override, config.tc_host_override, config.sleep_time
    config.ryuk_disabled, config.connection_mode_override = True, ConnectionMode.docker_host
    config.tc_host_override, config.sleep_time = "127.0.0.1", 0.1
    yield
    config.ryuk_disabled, config.connection_mode_override, config.tc_host_override, config.sleep_time = before


@dataclass
class Servers:
    """What the services are told."""

    bus: dict[str, DockerContainer]
    passwords: dict[str, str]
    s3: str
    registry: str

    @property
    def bus_url(self) -> str:
        return ",".join(f"nats://{address(each, 4222)}" for each in self.bus.values())


def address(container: DockerContainer, port: int) -> str:
    return f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"


@pytest.fixture(scope="module")
def servers(of_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    engine.server_image(NATS, "nats-server", ["nats-server"], entrypoint=True)
    engine.server_image(S3, "weed", ["weed"], entrypoint=True)
    engine.registry_image(REGISTRY)
    folder = tmp_path_factory.mktemp("servers")
    secrets = folder / "squall.env"
    users = squall_bus("users", "--shards", "1", "--node", NODE, "--secrets", str(secrets))
    passwords = dict(line.split("=", 1) for line in secrets.read_text().splitlines())
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        bus = {name: _nats(folder / name, name, users, passwords).with_network(network) for name in NAMES}
        for name, container in bus.items():
            container.with_network_aliases(name).start()
            stack.callback(container.stop)
        s3 = DockerContainer(S3).with_exposed_ports(8333).with_envs(**KEYS)
        s3.with_command("server -dir=/data -s3 -ip.bind=0.0.0.0 -master.telemetry=false -volume.preStopSeconds=0")
        registry = DockerContainer(REGISTRY).with_exposed_ports(5000)
        stack.enter_context(s3.waiting_for(HttpWaitStrategy(8333, "/healthz").for_status_code(200)))
        stack.enter_context(registry.waiting_for(HttpWaitStrategy(5000, "/v2/").for_status_code(200)))
        for container in bus.values():  # each waits for the others
            HttpWaitStrategy(8222, "/healthz").for_status_code(200).wait_until_ready(container)
        yield Servers(bus, passwords, f"http://{address(s3, 8333)}", f"http://{address(registry, 5000)}/squall")


def _nats(folder: Path, name: str, users: str, passwords: dict[str, str]) -> DockerContainer:
    folder.mkdir()
    (folder / "squall-users.conf").write_text(users)
    routes = ", ".join(f"nats://{other}:6222" for other in NAMES)
    (folder / "nats.conf").write_text(
        f"server_name: {name}\nhttp: 8222\nmax_payload: 1MB\n"
        'jetstream { store_dir: "/data", sync_interval: always }\n'
        f"cluster {{ name: local, listen: 0.0.0.0:6222, no_advertise: true, routes: [{routes}],"
        ' ping_interval: "5s", ping_max: 2 }\n'
        "include ./squall-users.conf\n"
    )
    container = DockerContainer(NATS).with_command("-c /etc/nats/nats.conf").with_envs(**passwords)
    return container.with_volume_mapping(str(folder), "/etc/nats", "ro").with_exposed_ports(4222, 8222)


def squall_bus(*words: str, stdin: str = "", **environment: str) -> str:
    child = subprocess.run(
        [BIN / "squall-bus", *words],
        input=stdin,
        env={**neutral_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@dataclass
class Region:
    """Services as processes of this machine."""

    url: str
    token: str
    home: Path

    def squall(self, *words: str | Path) -> subprocess.Popen[str]:
        environment = {"SQUALL_SERVER_URL": self.url, "SQUALL_TOKEN": self.token, "SQUALL_HOME": str(self.home)}
        return subprocess.Popen(
            [SQUALL, *words],
            env={**neutral_environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def region(servers: Servers, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    shared = {"SQUALL_BUS_URL": servers.bus_url, "SQUALL_BUS_SHARDS": "1", "SQUALL_BUS_REPLICAS": "3"}

    def user(name: str) -> dict[str, str]:
        variable = "SQUALL_BUS_PASSWORD_" + re.sub(r"\W", "_", name).upper()
        return {**shared, "SQUALL_BUS_USER": name, "SQUALL_BUS_PASSWORD": servers.passwords[variable]}

    squall_bus("topology", **user("topology"))
    token = squall_bus("token", "--name", "operator", **user("topology")).strip()
    services = squall_bus("token", "--name", "services", "--scope", "service", **user("topology")).strip()

    root = shared_base_root(tmp_path_factory)
    images = LayerFolder(tmp_path / "images")
    bases.register(images, f"debian_slim:{OWN}", root, Configuration())
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = {
        "endpoint": servers.s3,
        "region": "us-east-1",
        "access_key_id": KEYS["AWS_ACCESS_KEY_ID"],
        "secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"],
    }
    of_services = {
        "gateway": {
            "GATEWAY_PORT": str(port),
            "GATEWAY_BLOBS": "s3://squall/blobs",
            "GATEWAY_BLOB_OPTIONS": json.dumps(options),
        },
        "scheduler": {},
        "autoscaler": {},
        "builder": {
            "BUILDER_IMAGES_DIR": str(tmp_path / "images"),
            "BUILDER_FORMATS": "layers",
            "BUILDER_REGISTRY": servers.registry,
            "BUILDER_GATEWAY_URL": url,
            "BUILDER_TOKEN": services,
        },
        "gpu-agent": {
            "GPU_AGENT_NODE": NODE,
            "GPU_AGENT_DATA": str(tmp_path / "agent"),
            "GPU_AGENT_IMAGES_DIR": str(tmp_path / "agent-images"),
            "GPU_AGENT_BACKEND": "sandbox",
            "GPU_AGENT_SANDBOX_NETWORK": "false",
            "GPU_AGENT_REGISTRY": servers.registry,
            "GPU_AGENT_GATEWAY_URL": url,
            "GPU_AGENT_TOKEN": services,
        },
    }
    health = {name: free_port() for name in of_services if name != "gateway"}
    with contextlib.ExitStack() as stack:
        for name, settings in of_services.items():
            more = {f"SQUALL_{setting}": value for setting, value in settings.items()}
            if name in health:
                more[f"SQUALL_{name.replace('-', '_').upper()}_HEALTH_PORT"] = str(health[name])
            who = f"agent-{NODE}" if name == "gpu-agent" else name
            stack.enter_context(_service(name, {**neutral_environment(), **user(who), **more}, tmp_path))
        for at in (url, *(f"http://127.0.0.1:{each}" for each in health.values())):
            eventually(lambda at=at: answers(f"{at}/readyz"), within_s=60, what=lambda at=at: told(tmp_path))
        yield Region(url, token, tmp_path / "home")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _service(name: str, environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen([BIN / f"squall-{name}"], env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_S)
        finally:
            child.kill()
            child.wait()


def told(folder: Path) -> str:
    """The last lines of every service."""
    return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in folder.glob("*.log"))


def server_of_queue(servers: Servers) -> str:
    """The only server that has it, as the servers themselves tell."""
    for name, container in servers.bus.items():
        with urllib.request.urlopen(f"http://{address(container, 8222)}/jsz?accounts=1&streams=1") as answer:
            accounts = json.load(answer)["account_details"]
        if any(stream["name"] == "WORK_local_00" for each in accounts for stream in each["stream_detail"]):
            return name
    raise AssertionError("no server has the queue")


def test_calls_outlive_the_bus_server_that_has_their_queue(servers: Servers, region: Region, tmp_path: Path) -> None:
    program = tmp_path / "rented.py"
    program.write_text(PROGRAM)
    victim = servers.bus[server_of_queue(servers)].get_wrapped_container()

    with region.squall("run", program, "--calls", "400") as running:
        assert running.stdout is not None
        seen = next(line for line in running.stdout if "made 100" in line)
        victim.kill()  # and it stays away
        out, _ = running.communicate(timeout=200)

    assert running.returncode == 0, seen + out + told(tmp_path)
    assert "right: 400" in out
