"""What runsc is told: its command line, and the description of a container (OCI runtime specification). Pure.

Paths are those of the small root in which runsc runs (first.py): nothing of the host is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from squall.spec import DISK_IN_MEMORY_MIB
from squall_gpu_agent.backends import oci_seccomp
from squall_gpu_agent.backends.sandbox import kernel
from squall_gpu_agent.backends.sandbox.words import SlotPlan

RUNSC, STATE, BUNDLE, FILES, ROOT = "/runsc", "/state", "/bundle", "/files", "/root"
IMAGE = "/image"
"""Folder of an image of memory: to be written for a template, read-only for its copies, absent in all others."""
OF_RUNSC = (RUNSC, IMAGE)
"""Of what a slot is given, what its container does not see."""
NAME = "c"
"""Of the one container that each runsc runs."""
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
)
_KERNELS = ("nosuid", "noexec", "nodev")


def runsc(platform: str, network: bool) -> list[str]:
    """The command, up to its subcommand. Control groups are the launcher's: all of runsc is counted in the slot's."""
    return [
        RUNSC,
        f"--root={STATE}",
        f"--platform={platform}",
        f"--network={'sandbox' if network else 'none'}",
        "--ignore-cgroups",
        "--host-uds=open",
        "--oci-seccomp",
        f"--log={STATE}/log",
    ]


TEMPLATES = "CAP_SYS_ADMIN"
"""What templates may besides, of gVisor's own kernel: their forks give themselves a host name, then drop it. The list
of system calls has nothing else that it would open."""
KEPT = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 31))
"""`CAPABILITIES` as a mask."""


def process(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, open_files: int, *, template: bool = False
) -> dict[str, Any]:
    """A process in it."""
    kept = [*CAPABILITIES, TEMPLATES] if template else list(CAPABILITIES)
    return {
        "user": {"uid": 0, "gid": 0},
        "args": list(argv),
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": cwd,
        "capabilities": {"bounding": kept, "effective": kept, "permitted": kept},
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files},
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        ],
        "noNewPrivileges": True,
    }


def container(plan: SlotPlan, main: Mapping[str, Any], *, template: bool = False) -> dict[str, Any]:
    """The whole container."""
    return {
        "ociVersion": "1.0.2",
        "process": dict(main),
        "root": {"path": ROOT, "readonly": False},
        "hostname": plan.hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": list(_KERNELS)},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_KERNELS, "ro"]},
            _memory("/dev/shm", plan.shared_memory_mib, "noexec"),
            _memory("/tmp", tmp_mib(plan)),
            *(
                _bind(place(number), bind.target, bind.writable)
                for number, bind in enumerate(plan.binds)
                if bind.target not in OF_RUNSC
            ),
            *_volumes(plan),
            *(_bind(file_place(number), target, writable=True) for number, target in enumerate(plan.files)),
        ],
        "linux": {
            # The network namespace is the slot's own: runsc takes its addresses over.
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "ipc", "uts")),
                {"type": "network", "path": "/proc/self/ns/net"},
            ],
            # Within gVisor's own kernel: a call that a sandbox may not make is as little needed here.
            "seccomp": oci_seccomp.by_name(kernel.MACHINE, *(["sethostname"] if template else [])),
        },
    }


def tmp_mib(plan: SlotPlan) -> int:
    """Of `/tmp`, which gVisor keeps in its own memory, whatever the rest is on."""
    return min(plan.writable_mib, DISK_IN_MEMORY_MIB)


def place(number: int) -> str:
    """Where a bind of the plan is in runsc's root."""
    return f"/b{number}"


def file_place(number: int) -> str:
    """Where a small file of the plan is."""
    return f"{FILES}/{number}"


def volume_places(number: int) -> tuple[str, str]:
    """Where a volume of the plan is: as it is seen at its target, and inside."""
    return f"/v{number}", f"/v{number}-all"


def _volumes(plan: SlotPlan) -> Iterator[dict[str, Any]]:
    for number, overlay in enumerate(plan.overlays):
        seen, inner = volume_places(number)
        yield _bind(seen, overlay.target, not overlay.read_only)
        yield _bind(inner, overlay.inner, writable=True)


def _memory(target: str, mib: int, *options: str) -> dict[str, Any]:
    words = ["nosuid", "nodev", "mode=1777", f"size={mib << 20}", *options]
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": words}


def _bind(source: str, target: str, writable: bool) -> dict[str, Any]:
    words = ["rbind", "nosuid", "nodev", "rw" if writable else "ro"]
    return {"destination": target, "type": "bind", "source": source, "options": words}
