"""The files of the platform that containers see: `squall`, `squall_runner`, and the pure-Python picklers.

Copied into the agent's data folder under their content's hash: user code of any Python version imports them from there,
its byte-code is written there, and an upgrade of the platform does not change running containers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SDK = ("squall", "squall_runner")
PICKLERS = ("cloudpickle", "msgpack")


@dataclass(frozen=True, slots=True)
class SdkFiles:
    """Two folders for `sys.path`."""

    sdk: Path
    picklers: Path


def install(data_dir: Path) -> SdkFiles:
    """Copy them if this version is not there yet. Blocking."""
    files = sorted((f"{part}/{name}", path) for part, names in _PARTS for name, path in _sources(names))
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    home = data_dir / "sdk" / digest.hexdigest()[:24]
    if not home.exists():
        _publish(files, home)
    return SdkFiles(home / "sdk", home / "picklers")


def compile_with(python: Path, files: SdkFiles) -> None:
    """Write the byte-code of that interpreter's version beside them. Blocking."""
    command = [str(python), "-I", "-m", "compileall", "-q", str(files.sdk), str(files.picklers)]
    # Files that its grammar is too old for stay as they are.
    subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)


_PARTS = (("sdk", SDK), ("picklers", PICKLERS))


def _sources(packages: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"the agent's environment has no {package}: install squall-platform[gpu-agent]")
        base = Path(spec.submodule_search_locations[0])
        for path in sorted(base.rglob("*.py")):  # not the compiled parts: they fit one Python only
            yield f"{package}/{path.relative_to(base)}", path


def _publish(files: list[tuple[str, Path]], home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=home.parent, prefix=".new-"))
    for name, path in files:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    staging.chmod(0o755)
    try:
        os.rename(staging, home)
    except OSError:
        shutil.rmtree(staging)  # another agent on this folder was faster
        if not home.exists():
            raise
