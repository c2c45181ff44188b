"""Containers of gVisor that are restored from their template's memory, by the runsc of this machine."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.docker.sandboxes import gvisor_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, call, value
from tests.services.gpu_agent.test_memory_snapshots import MARKS
from tests.support.eventually import eventually

from squall_gpu_agent.backend import Container, ContainerRequest
from squall_gpu_agent.backends.gvisor.ahead import Restored
from squall_gpu_agent.backends.gvisor.backend import NOT_YET, GvisorBackend
from squall_gpu_agent.backends.gvisor.memory_images import FILE

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.gvisor]


@pytest.fixture
async def gvisor(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    backend = gvisor_backend(tmp_path / "gvisor", shared_base_root(tmp_path_factory))
    yield Workshop(backend, tmp_path)  # type: ignore[arg-type]
    await backend.close()


def backend_of(workshop: Workshop) -> GvisorBackend:
    assert isinstance(workshop.backend, GvisorBackend)
    return workshop.backend


async def first(workshop: Workshop, request: ContainerRequest) -> Container:
    """The first container, when what is made beside it is there or has failed."""
    container = await workshop.launch(request)
    assert (container.how, container.why) == ("fresh", NOT_YET)
    await eventually(lambda: not backend_of(workshop)._making, within_s=60)
    return container


async def waiting(workshop: Workshop) -> Restored:
    """The container that was restored before anybody asked for it."""
    ahead = backend_of(workshop)._ahead
    await eventually(lambda: len(ahead._waiting) == 1, within_s=60)
    ((restored, _),) = ahead._waiting.values()
    return restored


SOURCE = """
import os, random, socket, ssl, time, uuid
print("imported")
with open("/root/written", "w") as file:
    file.write("at import")
held = open("/root/written")
token, shared = os.environ["API_TOKEN"], random.random()
began = time.time(), time.monotonic()
class C:
    @snap
    def load(self):
        self.loaded = uuid.uuid4().hex
    @enter
    def start(self):
        self.entered = os.environ["SQUALL_CONTAINER_ID"]
    def same(self):
        return self.loaded, shared, token, held.read()
    def own(self):
        status = open("/proc/self/status").read()
        gone = time.time() - began[0], time.monotonic() - began[1]
        return {
            "random": [random.random(), ssl.RAND_bytes(8), uuid.uuid4().hex],
            "names": [socket.gethostname(), self.entered, os.environ.get("SQUALL_TOKEN")],
            "threads": [os.environ["OMP_NUM_THREADS"], os.environ.get("GLIBC_TUNABLES")],
            "capabilities": [line for line in status.splitlines() if line.startswith("Cap")],
            "root": sorted(os.listdir("/")),
            "clocks agree": abs(gone[0] - gone[1]) < 60 and 0 <= gone[1] < 600,
        }
    def end(self):
        os._exit(7)
"""


async def test_restored_containers_have_what_the_snapshot_made_and_are_somebody_else(gvisor: Workshop) -> None:
    files = {"root/marks.py": MARKS, "root/app.py": "from marks import *\n" + SOURCE}
    settings = {"use_template": True, "memory_snapshot": True, "is_class": True, "methods": ["same", "own", "end"]}
    request = gvisor.request(files, "C", params={}, env={"API_TOKEN": "s3cret"}, **settings)
    fresh = await first(gvisor, request)
    one = await gvisor.again(replace(request, token="token-1"))
    two = await gvisor.again(replace(request, token="token-2"))
    assert [(each.how, each.why) for each in (one, two)] == [("restore", "")] * 2

    same = [value(await call(each, method="same")) for each in (one, two)]
    assert same[0] == same[1]
    assert same[0][2:] == ("s3cret", "at import")
    mine, others = [value(await call(each, method="own")) for each in (one, two)]
    plain: dict[str, Any] = value(await call(fresh, method="own"))
    assert not set(mine["random"]) & set(others["random"])
    assert mine["names"] != others["names"]
    assert mine["names"][1:] == [one.id, "token-1"]
    for what in ("threads", "capabilities", "root", "clocks agree"):
        assert mine[what] == others[what] == plain[what], what
    assert [gvisor.printed(each) for each in (fresh, one, two)] == ["imported\n", "", ""]

    [image] = backend_of(gvisor)._memories.all()
    about = (image.memory / FILE).stat()
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (0, 0o600)
    await waiting(gvisor)
    assert image.users == 3
    await call(one, method="end")
    assert (await one.wait()).code == 7
    two.kill()
    await two.wait()
    await eventually(lambda: image.users == 1)
    await backend_of(gvisor)._ahead.close()
    await eventually(lambda: image.users == 0)
    await fresh.stop()
    await eventually(lambda: not os.listdir(backend_of(gvisor)._data / "slots"))


CODE = "import os, random\n\ndef f(): return os.environ['SQUALL_CONTAINER_ID'], random.random()"


async def test_the_next_container_is_the_copy_that_waits(gvisor: Workshop) -> None:
    request = gvisor.request(CODE, use_template=True)
    await first(gvisor, request)
    containers = []
    for _ in range(2):
        restored = await waiting(gvisor)
        containers.append(await gvisor.again(request))
        assert (containers[-1].how, containers[-1].why) == ("restore", "")
        assert containers[-1].pid == restored.pid
    seen = [value(await call(each)) for each in containers]
    assert [name for name, _ in seen] == [each.id for each in containers]
    assert seen[0][1] != seen[1][1]


async def test_a_copy_that_has_ended_while_it_waited_is_not_taken(gvisor: Workshop) -> None:
    request = gvisor.request(CODE, use_template=True)
    await first(gvisor, request)
    restored = await waiting(gvisor)
    os.kill(restored.pid, signal.SIGKILL)
    await eventually(lambda: not restored.usable)
    container = await gvisor.again(request)
    assert (container.how, container.why) == ("restore", "")
    assert value(await call(container))[0] == container.id
    await eventually(lambda: restored.slot.removed)


async def test_containers_that_differ_have_no_copy_that_waits(gvisor: Workshop) -> None:
    request = gvisor.request(CODE, use_template=True, block_network=True)
    await first(gvisor, request)
    restored = await waiting(gvisor)
    limited = replace(request, spec=replace(request.spec, resources=replace(request.spec.resources, cpu=0.5)))
    container = await gvisor.again(limited)
    assert container.pid != restored.pid
    assert restored.usable


async def test_what_cannot_be_forked_is_not_restored_either(gvisor: Workshop) -> None:
    source = "import subprocess\nchild = subprocess.Popen(['sleep', '100'])\ndef f(x): return x"
    request = gvisor.request(source, use_template=True)
    await first(gvisor, request)
    container = await gvisor.again(request)
    assert (container.how, container.why) == ("fresh", "import left 1 child process running")
    assert not backend_of(gvisor)._memories.all()
    assert os.listdir(backend_of(gvisor)._data / "memory") == []


async def test_an_image_that_is_damaged_is_not_used_twice_and_its_container_starts_plainly(gvisor: Workshop) -> None:
    request = gvisor.request("def f(x): return x", use_template=True)
    await first(gvisor, request)
    [image] = backend_of(gvisor)._memories.all()
    os.truncate(image.memory / FILE, 100_000)
    for reason in ("could not be restored: ", "(tried again in "):
        container = await gvisor.again(request)
        assert container.how == "fresh"
        assert reason in container.why
        assert value(await call(container, 7)) == 7
        assert gvisor.printed(container, "stderr") == "", "what runsc says is not the container's"
    await eventually(lambda: not image.folder.exists())


async def test_an_image_of_another_runsc_is_not_restored_and_one_without_room_not_kept(gvisor: Workshop) -> None:
    request = gvisor.request("def f(x): return x", use_template=True)
    await first(gvisor, request)
    backend = backend_of(gvisor)
    [image] = backend._memories.all()
    backend._notes = ("runsc of another day",)
    backend._memories._limit = 1 << 20
    await first(gvisor, request)
    container = await gvisor.again(request)
    assert container.how == "fresh"
    assert "does not fit into the 1 MiB for memory snapshots" in container.why
    assert backend._memories.all() == [image]
