"""Images for tests on a Docker engine, made of what this machine has: no registry is asked for anything.

Owns a stand-in for each image that compose.yaml names: a Python base, and the bus, S3 and proxy servers out of their
wheels.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support import base_root

BIN = Path(sys.executable).parent
BASE = "squall-test/base:local"
FOR_AGENTS = ("nft", "bash", "ldd", "ldconfig")
"""What networks of sandboxes are made with, and bases of this machine's Python."""


def docker(*words: str | Path, stdin: bytes | None = None, timeout_s: float = 120) -> str:
    """Runs the engine's command; what it printed. Fails when it fails."""
    child = subprocess.run(
        ["docker", *map(str, words)], input=stdin, capture_output=True, timeout=timeout_s, check=False
    )
    assert child.returncode == 0, child.stderr.decode(errors="replace")
    return child.stdout.decode().strip()


def base_image() -> str:
    """An image with Python that services can be built on; its tag. It is the same each time, so builds are cached."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        root.mkdir()
        archive = base_root.packed(base_root.make(root, FOR_AGENTS), Path(folder, "root.tar"))
        _import(archive, BASE, base_root.ENVIRONMENT, ["python3"])
    return BASE


def server_image(tag: str, program: str, command: list[str], *, entrypoint: bool = False) -> str:
    """An image of one static program out of its wheel, and of a shell and wget for health checks."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        for each in ("bin", "data", "tmp", "etc"):
            (root / each).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox, "needs the package busybox-static"
        shutil.copy(busybox, root / "bin/busybox")
        for name in ("sh", "wget"):
            (root / "bin" / name).symlink_to("busybox")
        shutil.copy(BIN / program, root / "bin" / program)
        archive = base_root.packed(root, Path(folder, "root.tar"))
        _import(archive, tag, {"PATH": "/bin"}, command, entrypoint=entrypoint)
    return tag


def registry_image(tag: str) -> str:
    """An image of Debian's docker-registry with a folder of its own."""
    program = shutil.which("docker-registry")
    assert program, "needs the package docker-registry"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        root.mkdir()
        base_root.program(root, Path(program))
        (root / "etc/registry.yml").write_text(
            "version: 0.1\nlog: {level: error}\nhttp: {addr: ':5000'}\n"
            "storage: {filesystem: {rootdirectory: /data}, delete: {enabled: true}}\n"
        )
        archive = base_root.packed(root, Path(folder, "root.tar"))
        _import(archive, tag, {"PATH": "/bin"}, [program, "serve", "/etc/registry.yml"])
    return tag


def _import(archive: Path, tag: str, env: Mapping[str, str], command: list[str], *, entrypoint: bool = False) -> None:
    words = ", ".join(f'"{word}"' for word in command)
    changes = [f"ENV {name}={value}" for name, value in env.items()]
    changes.append(f"{'ENTRYPOINT' if entrypoint else 'CMD'} [{words}]")
    docker("import", *(word for change in changes for word in ("-c", change)), archive, tag)
