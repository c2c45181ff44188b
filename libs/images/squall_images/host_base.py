"""A base image from what this machine has: one of its CPythons, a shell, small tools, and the libraries they need.

For development and for machines without a registry. It has no apt, unless it is made on a Debian of its own, which
takes half a minute (host_debian.py); `squall-images base add` takes any other root.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from squall.errors import ImageBuildError
from squall_images import bases, host_debian
from squall_images.build_room import OnLine
from squall_images.chain import DEBIAN_SLIM, Configuration
from squall_images.interpreters import Interpreter, find, installed
from squall_images.layered import Description, LayerFolder

TOOLS = (
    *("sh", "cat", "ls", "mkdir", "rmdir", "rm", "cp", "mv", "ln", "chmod", "chown", "touch", "env", "sleep", "id"),
    *("head", "tail", "sort", "tr", "cut", "wc", "stat", "mktemp", "true", "false", "uname", "date", "readlink", "tee"),
    *("dirname", "basename", "test", "tar", "gzip", "grep", "sed"),
)
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "__pycache__", "site-packages", "config-*", "*.a")
COMPLETE = ("libc6", "libgcc-s1", "libstdc++6", "libcrypt1")
"""Packages whose libraries are all taken: wheels name some that no program here does."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
}
ENV = {"LANG": "C.UTF-8", "SSL_CERT_FILE": str(CERTIFICATES)}
COMMAND_TIMEOUT_S = 120
WITH_APT = "+apt"
"""In the names of bases that are made with it."""


def register(folder: LayerFolder, name: str, python: Path, *, apt: bool = False) -> Description:
    """Make a base of that interpreter and register it; `apt`: on a Debian that has apt. Blocks for some seconds, or for
    half a minute with apt. Raises `ImageBuildError`."""
    folder.open()
    with tempfile.TemporaryDirectory(dir=folder.home / "staging") as scratch:
        root = Path(scratch) / "root"
        (make_with_apt if apt else make)(root, python)
        return bases.register(folder, name, root, Configuration(env=dict(ENV)))


class HostBases:
    """Bases for `debian_slim` of the interpreters of this machine, each made when it is first asked for."""

    def __init__(self, folder: LayerFolder, installed: Callable[[], Awaitable[list[Interpreter]]] = installed) -> None:
        self._folder = folder
        self._installed = installed
        self._making = asyncio.Lock()

    async def __call__(self, version: str, on_line: OnLine, apt: bool) -> Description:
        """The base of the newest interpreter of that version, with or without apt.

        Raises `ImageBuildError` naming those that are there."""
        python = find(version, await self._installed())
        name = f"{DEBIAN_SLIM}{WITH_APT if apt else ''}:{version}"
        async with self._making:
            made = self._folder.base(name)
            if made is None:
                having = "with apt, which takes a minute; it is kept" if apt else "it is kept, and has no apt"
                on_line(f"making a base of Python {python.full} of this machine; {having}")
                made = await asyncio.to_thread(partial(register, apt=apt), self._folder, name, python.path)
            return made


def make(root: Path, python: Path) -> None:
    """Fill a folder. Blocks for a few seconds. Raises `ImageBuildError` for an interpreter that cannot be taken."""
    for folder in (
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "usr/local/bin",
        "etc",
        "root",
        "tmp",
        "run",
        "var/tmp",
    ):
        (root / folder).mkdir(parents=True)
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / folder).symlink_to(f"usr/{folder}")
    for folder in ("tmp", "var/tmp"):
        (root / folder).chmod(0o1777)
    _take_libraries(root, [_interpreter(root, python), *_tools(root)])
    for name, text in ETC.items():
        (root / "etc" / name).write_text(text)
    for file in (Path("/etc/os-release"), CERTIFICATES):
        if file.exists():
            target = root / file.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (root / "etc/ld.so.conf").write_text("".join(f"{folder}\n" for folder in ("/usr/local/lib", *_folders(root))))
    _output(["ldconfig", "-X", "-r", str(root)], check=False)


def make_with_apt(root: Path, python: Path) -> None:
    """The same on a Debian of its own. Blocks for half a minute or more. Raises `ImageBuildError`."""
    host_debian.make(root)
    _take_libraries(root, [_interpreter(root, python)])
    _output(["ldconfig", "-X", "-r", str(root)], check=False)


def _take_libraries(root: Path, programs: Sequence[Path]) -> None:
    """What they need of this machine and is not there yet. The first is the interpreter."""
    for library in _libraries([*programs, *(root / "usr/local").rglob("*.so")], programs[0]):
        target = root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(library, target)


def _folders(root: Path) -> list[str]:
    """Folders of libraries that are named after an architecture."""
    return sorted({f"/{path.parent.relative_to(root)}" for path in (root / "usr/lib").glob("*/lib*.so*")})


def _interpreter(root: Path, python: Path) -> Path:
    asked = "import json, sys; print(json.dumps([sys.base_prefix, '%d.%d' % sys.version_info[:2]]))"
    prefix, version = json.loads(_output([str(python), "-I", "-c", asked]))
    source, local = Path(prefix).resolve(), root / "usr/local"
    program, library = source / "bin" / f"python{version}", source / "lib" / f"python{version}"
    if not program.exists() or not library.is_dir():
        raise ImageBuildError(f"{python} has its library in no place that is known", fix="Choose another interpreter.")
    shutil.copy(program, local / "bin" / program.name)
    shutil.copytree(library, local / "lib" / library.name, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for shared in source.glob(f"lib/libpython{version}*.so*"):
        shutil.copy(shared, local / "lib" / shared.name)
    (local / "lib" / library.name / "site-packages").mkdir(exist_ok=True)
    for link in ("python3", "python"):
        (local / "bin" / link).symlink_to(program.name)
    return local / "bin" / program.name


def _tools(root: Path) -> list[Path]:
    copied = []
    for name in TOOLS:
        found = shutil.which(name, path="/usr/bin:/bin")
        if found is not None:
            shutil.copy(os.path.realpath(found), root / "usr/bin" / name)
            copied.append(root / "usr/bin" / name)
    return copied


def _libraries(programs: Iterable[Path], python: Path) -> set[Path]:
    """Shared objects of this machine that the programs need, by the names that they need them by."""
    local = python.parent.parent / "lib"
    listed = _output(["ldd", *map(str, programs)], check=False, LD_LIBRARY_PATH=str(local))
    found = {Path(match) for match in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed, re.MULTILINE)}
    for name in COMPLETE:
        found |= {Path(line) for line in _output(["dpkg", "-L", name], check=False).splitlines() if ".so" in line}
    return {path for path in found if path.is_file() and not path.is_relative_to(local) and "gconv" not in path.parts}


def _output(command: list[str], check: bool = True, **env: str) -> str:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, env={"PATH": path, **env}
        )
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ImageBuildError(f"{command[0]} cannot be run: {error}") from error
    if check and done.returncode:
        raise ImageBuildError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
