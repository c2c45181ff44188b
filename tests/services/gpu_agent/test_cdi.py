"""CDI files: what a container is given for a device, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from squall_gpu_agent import cdi
from squall_gpu_agent.cdi import CdiError, Mount, edits

NULL = {"path": "/dev/nvidia0", "hostPath": "/dev/null"}


def a_file(
    folder: Path, devices: dict[str, Any], common: Any = None, name: str = "nvidia.yaml", kind: str = cdi.KIND
) -> str:
    found = {
        "cdiVersion": "0.5.0",
        "kind": kind,
        "containerEdits": common or {},
        "devices": [{"name": name, "containerEdits": own} for name, own in devices.items()],
    }
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(found) if name.endswith(".json") else yaml.safe_dump(found))
    return str(folder)


def hook(name: str, *words: str, old: bool = False) -> dict[str, Any]:
    program = ["nvidia-ctk", "hook"] if old else ["nvidia-cdi-hook"]
    return {"hookName": "createContainer", "path": f"/usr/bin/{program[0]}", "args": [*program, name, *words]}


def test_a_container_gets_what_its_devices_need_and_nothing_of_others(tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.550"
    library.touch()
    common = {
        "deviceNodes": [{"path": "/dev/zero", "major": 1, "minor": 5}],
        "mounts": [{"hostPath": str(library), "containerPath": "/usr/lib/libcuda.so.550", "options": ["ro", "bind"]}],
        "env": ["NVIDIA_VISIBLE_DEVICES=void", "EMPTY="],
        "hooks": [
            hook("create-symlinks", "--link", "libcuda.so.550::/usr/lib/libcuda.so", "--link=a::/usr/lib/b", old=True),
            hook("update-ldcache", "--folder", "/usr/lib"),
            hook("enable-cuda-compat", "--host-driver-version=550"),
        ],
    }
    other = {"deviceNodes": [{"path": "/dev/nvidia1", "hostPath": "/dev/full"}]}
    own = {"deviceNodes": [NULL], "hooks": [hook("chmod", "--mode", "755", "--path", "/dev/dri")]}
    folder = a_file(tmp_path / "cdi", {"GPU-a": own, "GPU-b": other, "all": other}, common)
    a_file(tmp_path / "cdi", {"GPU-a": {}}, name="other.json", kind="amd.com/gpu")
    found = edits(f"/nowhere:{folder}", ["GPU-a"])
    assert found == cdi.Edits(
        nodes=(Mount(source="/dev/zero", target="/dev/zero", writable=True), Mount(**MOUNT)),
        mounts=(Mount(source=str(library), target="/usr/lib/libcuda.so.550"),),
        env={"NVIDIA_VISIBLE_DEVICES": "void", "EMPTY": ""},
        links=(("/usr/lib/libcuda.so", "libcuda.so.550"), ("/usr/lib/b", "a")),
        libraries=("/usr/lib",),
    )
    assert [node.target for node in edits(folder, ["GPU-b", "GPU-a"]).nodes] == [
        "/dev/zero",
        "/dev/nvidia1",
        "/dev/nvidia0",
    ]
    assert edits("/nowhere", []) == cdi.NO_EDITS


MOUNT: dict[str, Any] = {"source": "/dev/null", "target": "/dev/nvidia0", "writable": True}


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"deviceNodes": [{**NULL, "minor": 4}]}, "is not the device"),
        ({"deviceNodes": [{**NULL, "hostPath": "/etc/passwd"}]}, "is not the device"),
        ({"deviceNodes": [{**NULL, "hostPath": "/dev/none"}]}, "is not there"),
        ({"deviceNodes": [{**NULL, "path": "/dev/../etc/x"}]}, "outside of /dev"),
        ({"mounts": [{"hostPath": "/none", "containerPath": "/a"}]}, "/none, which a CDI file gives"),
        ({"mounts": [{"hostPath": "/etc", "containerPath": "/usr/../proc/x"}]}, "not the image"),
        ({"mounts": [{"hostPath": "/etc", "containerPath": "relative"}]}, "not an absolute path"),
        ({"mounts": [{}]}, "cannot be understood"),
        ({"hooks": [hook("do-magic")]}, "'do-magic', which sandboxes do not know"),
        ({"hooks": [{"hookName": "prestart", "path": "/bin/own"}]}, "'/bin/own', which sandboxes do not know"),
        ({"env": 7}, "cannot be understood"),
    ],
)
def test_what_a_container_cannot_be_given_is_an_error_that_says_so(tmp_path: Path, own: Any, why: str) -> None:
    with pytest.raises(CdiError, match=why):
        edits(a_file(tmp_path, {"GPU-a": own}), ["GPU-a"])


@pytest.mark.parametrize("text", ["", "[]", "kind: nvidia.com/gpu", "a: [", "\0"])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(CdiError, match=r"a\.yaml is no CDI file(.|\n)*nvidia-ctk cdi generate"):
        edits(str(tmp_path), ["GPU-a"])


def test_a_device_that_no_file_has_is_not_given_as_another(tmp_path: Path) -> None:
    folder = a_file(tmp_path, {"all": {"deviceNodes": [NULL]}, "0": {"deviceNodes": [NULL]}})
    with pytest.raises(CdiError, match=r"no CDI file in .* has the device nvidia.com/gpu=GPU-a"):
        edits(folder, ["GPU-a"])
