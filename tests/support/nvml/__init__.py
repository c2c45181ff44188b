"""A machine with GPUs for tests: NVIDIA's library as a C stub, which agents load in place of the driver's.

The library is found by its name in the folders of LD_LIBRARY_PATH, which is read when a process starts: agents that are
to see these devices are processes of their own, started with `environment`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

LIBRARY = "libnvidia-ml.so.1"
H100 = "NVIDIA H100 80GB HBM3"


@dataclass(frozen=True, kw_only=True)
class FakeInstance:
    """A MIG instance of a device."""

    uuid: str
    slices: int = 1
    compute: int = 1
    memory_mib: int = 9_984
    used_mib: int = 0
    pids: tuple[int, ...] = ()

    def line(self) -> str:
        pids = ",".join(map(str, self.pids)) or "-"
        return f"mig {self.uuid};{self.slices};{self.compute};{self.memory_mib};{self.used_mib};{pids}\n"


@dataclass(frozen=True, kw_only=True)
class FakeGpu:
    """One device, as the stub tells it."""

    uuid: str
    name: str = H100
    memory_mib: int = 81_559
    used_mib: int = 0
    mig: bool = False
    instances: tuple[FakeInstance, ...] = ()
    uncorrected: int = 0
    remap_failed: bool = False
    pids: tuple[int, ...] = ()
    state: str = "ok"
    """ok, lost, or xid=N."""

    def line(self) -> str:
        pids = ",".join(map(str, self.pids)) or "-"
        numbers = f"{self.memory_mib};{self.used_mib};{self.mig:d};{self.uncorrected};{self.remap_failed:d}"
        own = f"{self.uuid};{self.name};{numbers};{pids};{self.state}\n"
        return own + "".join(instance.line() for instance in self.instances)


@dataclass
class FakeMachine:
    """What the driver of one machine tells; changes are seen at the next reading."""

    folder: Path
    gpus: dict[str, FakeGpu] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        build(self.folder)
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that is to see these devices."""
        return {"LD_LIBRARY_PATH": str(self.folder), "FAKE_NVML": str(self.folder / "machine.txt")}

    def add(self, *gpus: FakeGpu) -> None:
        """Put devices in."""
        self.gpus.update((gpu.uuid, gpu) for gpu in gpus)
        self.write()

    def change(self, uuid: str, **what: object) -> None:
        """One device is not as it was."""
        self.gpus[uuid] = replace(self.gpus[uuid], **what)  # type: ignore[arg-type]
        self.write()

    def write(self) -> None:
        """Whole or not at all: the stub reads at any time."""
        self._put("".join(gpu.line() for gpu in self.gpus.values()))

    def unload_driver(self) -> None:
        """As before `modprobe nvidia`."""
        self._put("driver gone\n")

    def _put(self, text: str) -> None:
        fresh = self.folder / "machine.new"
        fresh.write_text(text)
        os.replace(fresh, self.folder / "machine.txt")


def h100s(number: int, prefix: str = "GPU-5a11") -> list[FakeGpu]:
    """So many of them."""
    return [FakeGpu(uuid=f"{prefix}{n:04}-0000-4000-8000-000000000000") for n in range(number)]


def build(folder: Path) -> None:
    """Compile the stub into a folder (0.2 s)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = Path(__file__).with_name("fake_nvml.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{LIBRARY}"]
    subprocess.run([*command, "-o", str(folder / LIBRARY), str(source)], check=True, timeout=60)
