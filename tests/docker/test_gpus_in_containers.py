"""GPUs in containers that are isolated: a container has its devices and their libraries, and no others. The devices are
plain ones under other names, their library is a stub, and what a driver's installation says of them is made here."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from tests.docker.sandboxes import docker_backend, gvisor_backend, sandbox_backend, shared_base_root
from tests.sdk.runner.containers import Workshop, call, value
from tests.support import nvml

from squall.spec import GpuRequest, Resources
from squall_gpu_agent.backend import StartFailed
from squall_gpu_agent.cdi import KIND

pytestmark = [pytest.mark.slow, pytest.mark.root]

FIRST, SECOND = (gpu.uuid for gpu in nvml.h100s(2))
NUMBERS = {FIRST: 3, SECOND: 5}
"""Minor numbers: null, zero."""
PROGRAM = """
import ctypes, os, stat

def look():
    found = sorted(name for name in os.listdir("/dev") if name.startswith("nvidia"))
    library = ctypes.CDLL("libnvidia-ml.so.1")
    assert library.nvmlInit_v2() == 0
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    minors = [os.minor(os.stat(f"/dev/{name}").st_rdev) for name in found]
    opened = [os.read(os.open(f"/dev/{name}", os.O_RDWR), 2) for name in found]
    variables = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "OF_CDI")]
    return found, minors, opened, count.value, os.readlink("/usr/lib/linked.so"), variables

def make():
    try:
        os.mknod("/tmp/nvidia1", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except PermissionError:
        return "refused"

def own(what):
    return look() if what == "look" else make()
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """What a driver's installation puts on a machine."""
    folder = tmp_path / "driver"
    nvml.FakeMachine(folder).add(*nvml.h100s(2))
    for number, minor in enumerate(NUMBERS.values()):
        os.mknod(folder / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(1, minor))
        (folder / f"nvidia{number}").chmod(0o666)
    edits: dict[str, Any] = {
        "env": ["NVIDIA_VISIBLE_DEVICES=void", "OF_CDI=1", "FAKE_NVML=/opt/machine.txt"],
        "mounts": [
            {"hostPath": str(folder / nvml.LIBRARY), "containerPath": "/usr/lib/nvidia/libnvidia-ml.so.550.1"},
            {"hostPath": str(folder / "machine.txt"), "containerPath": "/opt/machine.txt", "options": ["ro"]},
        ],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "create-symlinks", "--link", "nvidia/x::/usr/lib/linked.so"],
            },
            {
                "hookName": "createContainer",
                "path": "/usr/bin/nvidia-cdi-hook",
                "args": ["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib/nvidia"],
            },
        ],
    }
    devices = [
        {
            "name": uuid,
            "containerEdits": {
                "deviceNodes": [{"path": f"/dev/nvidia{number}", "hostPath": str(folder / f"nvidia{number}")}]
            },
        }
        for number, uuid in enumerate(NUMBERS)
    ]
    (folder / "cdi").mkdir()
    found = {"cdiVersion": "0.5.0", "kind": KIND, "containerEdits": edits, "devices": devices}
    (folder / "cdi" / "nvidia.yaml").write_text(yaml.safe_dump(found))
    return folder


@pytest.fixture
async def sandboxes(driver: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    root = shared_base_root(tmp_path_factory)
    backend = sandbox_backend(tmp_path / "sandbox", root, cdi_dirs=str(driver / "cdi"))
    yield Workshop(backend, tmp_path)
    await backend.close()


def granted(*uuids: str) -> dict[str, Any]:
    """As an agent asks for it."""
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(uuids), "NVIDIA_VISIBLE_DEVICES": ",".join(uuids) or "void"}
    resources = Resources(gpus=(GpuRequest("H100", len(uuids)),)) if uuids else Resources()
    return {"gpus": uuids, "gpu_env": variables, "resources": resources}


async def test_a_sandbox_has_its_own_devices_and_finds_their_libraries(sandboxes: Workshop) -> None:
    container = await sandboxes.start(PROGRAM, "own", **granted(SECOND))
    seen = value(await call(container, "look"))
    assert seen == (["nvidia1"], [5], [bytes(2)], 2, "nvidia/x", [SECOND, SECOND, "1"])
    assert value(await call(container, "make")) == "refused"
    both = await sandboxes.start(PROGRAM, "own", **granted(FIRST, SECOND))
    assert value(await call(both, "look"))[:2] == (["nvidia0", "nvidia1"], [3, 5])
    none = await sandboxes.start("import os\ndef f(): return [n for n in os.listdir('/dev') if 'nvidia' in n]")
    assert value(await call(none)) == []


async def test_a_template_has_no_device_and_each_fork_its_own(sandboxes: Workshop) -> None:
    source = "import os\nbefore = [n for n in os.listdir('/dev') if 'nvidia' in n]\n" + PROGRAM
    source += "\ndef both(): return before, look()[:2], os.environ['NVIDIA_VISIBLE_DEVICES']\n"
    wanted = sandboxes.request(source, "both", use_template=True, memory_snapshot=True, **granted(FIRST))
    for uuid, number in ((FIRST, 0), (SECOND, 1)):
        own = granted(uuid)
        container = await sandboxes.again(
            type(wanted)(**{**_fields(wanted), "gpus": own["gpus"], "gpu_env": own["gpu_env"]})
        )
        assert container.how == "fork", container.why
        assert value(await call(container)) == ([], ([f"nvidia{number}"], [NUMBERS[uuid]]), uuid)


def _fields(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in type(request).__dataclass_fields__}


async def test_a_device_that_no_file_names_is_an_error_that_says_what_to_do(sandboxes: Workshop) -> None:
    with pytest.raises(StartFailed, match="nvidia-ctk cdi generate"):
        await sandboxes.start(PROGRAM, "own", **granted("GPU-unknown"))


@pytest.mark.gvisor
async def test_gvisor_says_that_it_gives_no_devices(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    backend = gvisor_backend(tmp_path / "gvisor", shared_base_root(tmp_path_factory))
    try:
        assert "nvproxy" in (await backend.probe()).no_gpus
        with pytest.raises(StartFailed, match="nvproxy"):
            await Workshop(backend, tmp_path).start(PROGRAM, "own", **granted(FIRST))  # type: ignore[arg-type]
    finally:
        await backend.close()


@pytest.mark.docker
async def test_an_engine_is_asked_for_the_devices_of_a_container(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    backend = docker_backend(tmp_path / "docker", shared_base_root(tmp_path_factory))
    try:
        workshop = Workshop(backend, tmp_path)  # type: ignore[arg-type]
        source = "import os\ndef f(): return os.environ['NVIDIA_VISIBLE_DEVICES']"
        try:
            container = await workshop.start(source, **granted(SECOND))
        except StartFailed as failed:
            if "could not select device driver" not in failed.message:
                raise
            pytest.skip("needs an engine that takes requests for GPUs: scripts/docker-engine starts one")
        assert value(await call(container)) == SECOND
        asked = backend._engine._ask("GET", f"/containers/{container.placed.name}/json")["HostConfig"]  # type: ignore[attr-defined]
        assert [request["DeviceIDs"] for request in asked["DeviceRequests"]] == [[SECOND]]
    finally:
        await backend.close()
