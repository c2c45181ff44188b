"""A layer of Python packages. Owns which files of an installation are new, and which earlier ones are gone.

uv runs on the builder where that is safe: wheels only, nothing of the package is executed, files are hard links from
uv's cache (95 ms for numpy and pandas, copying took 2.5 s). It sees what the layers below have by their metadata alone.
What has to be built, or has options that reach further, is installed in a build room instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall_images import bytecode, caches, egress, keys, uv
from squall_images.beneath import beneath, lines_of
from squall_images.build_room import OWN, Bind, OnLine, Room, Work
from squall_images.interpreters import Interpreter
from squall_images.layered import Python, whiteout
from squall_images.trees import entries, remove

SAFE_OPTIONS = frozenset(
    (
        *("--no-deps", "--no-index", "--pre", "--prerelease", "--resolution", "--upgrade", "-U", "--exclude-newer"),
        *("--index-strategy", "--index-url", "--extra-index-url", "--default-index", "--index", "--find-links", "-f"),
        *("--offline", "--only-binary", "--torch-backend", "--require-hashes", "--reinstall"),
    )
)
SAFE_VARIABLES = re.compile(
    r"UV_(INDEX|DEFAULT_INDEX|EXTRA_INDEX_URL|PRERELEASE|RESOLUTION|EXCLUDE_NEWER|TORCH_BACKEND)\w*"
)
SAFE_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])?\s*([<>=!~;(,].*)?", re.DOTALL)
SAFE_PLACE = re.compile(r"https?://")
CREDENTIALS = re.compile(r"://[^/\s]*@")
"""uv keeps what an index gave to one user, under its address without the password, for whoever asks for it next."""
NEEDS_BUILD = re.compile(r"building from source is disabled|no usable wheels|--no-build|only-binary", re.IGNORECASE)
GLIBC_MINORS = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
"""Those that uv has platforms for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipStep:
    """What one step installs, and on top of what."""

    title: str
    arguments: Mapping[str, Any]
    python: Python
    room: Room
    env: Mapping[str, str]
    """Of the image."""
    home: Path
    """Has uv's cache and that of byte-code, on the file system of the layers."""
    uv: Path
    installed: Sequence[Interpreter]
    """Interpreters of this machine."""
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The step's secrets; with any, it is installed in a room, where nothing of others is."""
    timeout_s: float = 3600.0
    """Most that it may take."""

    async def make(self, on_line: OnLine) -> None:
        """Fill `room.changes`. Raises `ImageBuildError`."""
        if self._safe():
            heard: list[str] = []
            try:
                with caches.used(self.home, caches.UV), caches.used(self.home, caches.BYTECODE):
                    await self._on_the_builder(heard.append)
            except ImageBuildError as error:
                if not NEEDS_BUILD.search(str(error.data.get("output", ""))):
                    _replay(heard, on_line)
                    raise
                on_line("a package has no wheel: it is built in the image")
                await asyncio.to_thread(_emptied, self.room.staging)
            else:
                _replay(heard, on_line)
                return
        await self._in_a_room(on_line)

    # --- on the builder ---

    def _safe(self) -> bool:
        """Whether uv may run on this machine for it: only packages of an index, by options that stay within it."""
        arguments = self.arguments
        given = list(keys.options(arguments))
        words = [word.partition("=")[0] for word in given if word.startswith("-")]
        # Paths are those of the image; the builder's own files are not for its users.
        places = [word.rpartition("=")[2] for word in given if "/" in word]
        lines = [line.strip() for line in str(arguments.get("requirements") or "").splitlines() if line.strip()]
        words += [re.split(r"[=\s]", line)[0] for line in lines if line.startswith("-")]
        places += [line.partition(" ")[2].strip() for line in lines if line.startswith("-")]
        packages = [*map(str, arguments.get("packages") or ()), *(line for line in lines if not line.startswith("-"))]
        return (
            not self.hidden
            and not self._has_credentials()
            and all(word in SAFE_OPTIONS for word in words)
            and all("/" not in place or SAFE_PLACE.match(place) for place in places)
            and all(SAFE_PACKAGE.fullmatch(package) for package in packages)
            and all(SAFE_VARIABLES.fullmatch(str(name)) for name in arguments.get("env") or {})
            and self._platform() is not None
        )

    def _has_credentials(self) -> bool:
        env = self.arguments.get("env") or {}
        texts = (*keys.options(self.arguments), self.arguments.get("requirements") or "", *env.values())
        packages = self.arguments.get("packages") or ()
        return any(CREDENTIALS.search(str(text)) for text in (*texts, *packages)) or any(
            str(name).endswith(("_USERNAME", "_PASSWORD")) for name in env
        )

    def _names_places(self) -> bool:
        given = (*keys.options(self.arguments), str(self.arguments.get("requirements") or ""))
        packages = map(str, self.arguments.get("packages") or ())
        return bool(self.arguments.get("env")) or any("://" in text for text in (*given, *packages))

    def _platform(self) -> str | None:
        name, _, version = self.python.libc.partition(" ")
        machine = os.uname().machine
        if name != "glibc":
            return None
        minor = int(version.split(".")[1])
        return f"{machine}-manylinux_2_{max(known for known in GLIBC_MINORS if known <= max(minor, 17))}"

    async def _on_the_builder(self, on_line: OnLine) -> None:
        prefix = self.room.staging / "prefix"
        own = f"{sys.version_info[0]}.{sys.version_info[1]}"
        site = prefix / "lib" / f"python{own}" / "site-packages"
        before = await asyncio.to_thread(self._seed, site)
        version = ".".join(map(str, self.python.version))
        command = [
            *(str(self.uv), "pip", "install", "--quiet", "--python", sys.executable, "--prefix", str(prefix)),
            *("--python-version", version, "--python-platform", str(self._platform()), "--only-binary", ":all:"),
            # Compiled by the image's Python, they must not be the files of the cache that all builds share.
            *("--link-mode", "hardlink" if self._fitting() else "copy", "--no-config"),
        ]
        listed = self.room.staging / "requirements.txt"
        command += self._wanted(listed, str(listed))
        env = {str(name): str(value) for name, value in (self.arguments.get("env") or {}).items()}
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._run_uv(command, env, on_line)
        except TimeoutError:
            raise ImageBuildError(
                f"image step `{self.title}` took more than {self.timeout_s:g} s", step=self.title, exit_code=124
            ) from None
        await asyncio.to_thread(_unseed, site, before)
        await self._compile(site)
        await asyncio.to_thread(self._move, prefix, site, before)

    async def _run_uv(self, command: Sequence[str], env: Mapping[str, str], on_line: OnLine) -> None:
        async with contextlib.AsyncExitStack() as until_done:
            if self._names_places():
                # uv is on this machine, and asks what users name: it goes the way that builds go.
                env = {**env, **await until_done.enter_async_context(egress.on_this_machine(self.room.rules))}
            await uv.run(self.title, command, self.home / "uv-cache", on_line, env)

    def _wanted(self, listed: Path, shown: str) -> list[str]:
        words = list(keys.options(self.arguments))
        if self.arguments.get("requirements"):
            listed.write_text(str(self.arguments["requirements"]))
            words += ["--requirements", shown]
        return [*words, "--", *(str(package) for package in self.arguments.get("packages") or ())]

    def _seed(self, site: Path) -> dict[str, Path]:
        """Metadata of what the layers below have, so that uv knows it; by the name of its folder."""
        site.mkdir(parents=True)
        found = visible(self.room.layers, self.python.site_packages)
        for name, folder in found.items():
            (site / name).mkdir()
            os.link(folder / "METADATA", site / name / "METADATA", follow_symlinks=False)
            # uv removes, as root of this machine, what stands in here when it replaces a distribution.
            (site / name / "RECORD").write_text(f"{name}/METADATA,,\n{name}/RECORD,,\n")
        return found

    def _fitting(self) -> list[Interpreter]:
        return [found for found in self.installed if found.minor == self.python.minor]

    async def _compile(self, site: Path) -> None:
        fitting = self._fitting()
        if not fitting:
            return await self._compile_in_a_room(site)
        tag = f"cpython-{self.python.version[0]}{self.python.version[1]}"
        await asyncio.to_thread(bytecode.compile_new, site, fitting[0].path, tag, self.home / "bytecode")
        return None

    async def _compile_in_a_room(self, site: Path) -> None:
        command = [self.python.executable, "-I", "-m", "compileall", "-q", "-j", "0", "--invalidation-mode"]
        work = Work(
            command=[*command, "unchecked-hash", f"{OWN}/site"],
            env={"PATH": "/usr/bin:/bin"},
            workdir="/",
            binds=(Bind(source=site, target=f"{OWN}/site", read_only=False),),
            proxied=False,
        )
        try:
            await Room(self.room.layers, self.room.staging / "compile", limits=self.room.limits).run(
                "byte-code", work, lambda _: None
            )
        except ImageBuildError:
            pass  # files that are no valid Python (templates, tests of parsers) are no reason to fail

    def _move(self, prefix: Path, site: Path, before: Mapping[str, Path]) -> None:
        """From uv's folders to those of the image's interpreter."""
        files = self.room.changes
        files.mkdir(parents=True, exist_ok=True)
        gone = [folder for name, folder in before.items() if (site / f".gone-{name}").exists()]
        for mark in site.glob(".gone-*"):
            mark.unlink()
        for source, target in (
            (site, self.python.site_packages),
            (prefix / "bin", self.python.scripts),
            (prefix / "share", f"{self.python.data}/share"),
            (prefix / "etc", f"{self.python.data}/etc"),
            (prefix / "include", f"{self.python.data}/include"),
        ):
            if source.is_dir():
                inside = beneath(files, target)
                inside.parent.mkdir(parents=True, exist_ok=True)
                source.rename(inside)
        _point(beneath(files, self.python.scripts), sys.executable, self.python.executable)
        for folder in gone:
            _hide_distribution(folder, files, self.python.site_packages)
        shutil.rmtree(prefix, ignore_errors=True)

    # --- in a room ---

    async def _in_a_room(self, on_line: OnLine) -> None:
        listed = self.room.staging / "requirements.txt"
        binds = [Bind(source=self.uv, target=f"{OWN}/uv")]
        command = [
            *(f"{OWN}/uv", "pip", "install", "--python", self.python.executable, "--break-system-packages"),
            *("--link-mode", "copy", "--no-config"),
            *self._wanted(listed, f"{OWN}/requirements.txt"),
        ]
        if listed.exists():
            binds.append(Bind(source=listed, target=f"{OWN}/requirements.txt"))
        variables = {
            **self.env,
            **uv.index_settings(),
            # In the room: a cache that builds share could be poisoned by one of them.
            "UV_CACHE_DIR": f"{OWN}/uv-cache",
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            **{str(name): str(value) for name, value in (self.arguments.get("env") or {}).items()},
        }
        work = Work(
            command=command,
            env=variables,
            workdir="/",
            binds=tuple(binds),
            hidden=self.hidden,
            timeout_s=self.timeout_s,
        )
        await self.room.run(f"{self.title} ({shlex.join(command[1:3])})", work, on_line)
        await self._compile_changes()

    async def _compile_changes(self) -> None:
        try:
            site = beneath(self.room.changes, self.python.site_packages)
        except ImageBuildError:
            return  # what was installed has put a link there: it would be compiled where that leads
        if site.is_dir():
            for record in [path for path in entries(site) if path.endswith("/__pycache__")]:
                remove(Path(record))
            await self._compile_in_a_room(site)


def visible(layers: Sequence[Path], site_packages: str) -> dict[str, Path]:
    """Metadata folders of the distributions that an image has, topmost first."""
    found: dict[str, Path] = {}
    hidden: set[str] = set()
    for layer in reversed(layers):
        try:
            entries = list(os.scandir(beneath(layer, site_packages)))
        except (FileNotFoundError, NotADirectoryError, ImageBuildError):
            continue
        for entry in entries:
            if entry.name in found or entry.name in hidden or not entry.name.endswith(".dist-info"):
                continue
            if _is_file(Path(entry.path, "METADATA")) and entry.is_dir(follow_symlinks=False):
                found[entry.name] = Path(entry.path)
            else:
                hidden.add(entry.name)
    return found


def _unseed(site: Path, before: Mapping[str, Path]) -> None:
    """Take out what the layers below have; note what uv has removed of it."""
    for name, folder in before.items():
        metadata = site / name / "METADATA"
        try:
            same = os.path.samestat(os.stat(metadata), os.stat(folder / "METADATA"))
        except FileNotFoundError:
            same = False
        if same:
            shutil.rmtree(site / name)
        else:
            (site / f".gone-{name}").touch()


def _hide_distribution(metadata: Path, files: Path, site_packages: str) -> None:
    """Whiteouts for the files of a distribution that was replaced, where the new one has none of that name."""
    for line in lines_of(metadata / "RECORD"):
        name = line.rsplit(",", 2)[0].strip('"')
        path = posixpath.normpath(posixpath.join(site_packages, name)).lstrip("/")
        if name and not path.startswith("..") and metadata.name not in path:
            target = beneath(files, path)
            whiteout(target)
            if name.endswith(".py"):
                _hide_bytecode(target)
    own = beneath(files, f"{site_packages}/{metadata.name}")
    if not own.exists():
        whiteout(own)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _hide_bytecode(source: Path) -> None:
    """Of a module that is gone; a file without source is still importable only outside of __pycache__."""
    if source.is_char_device():
        for tag in range(9, 16):
            stale = source.parent / "__pycache__" / f"{source.stem}.cpython-3{tag}.pyc"
            if stale.exists():
                stale.unlink()


def _point(scripts: Path, wrong: str, right: str) -> None:
    """Programs start with the interpreter that they were installed by: let it be the image's."""
    if not scripts.is_dir():
        return
    for script in scripts.iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        with script.open("rb") as file:
            head = file.read(4)
            if head[:2] != b"#!":
                continue
            text = head + file.read()
        first, _, rest = text.partition(b"\n")
        mode = script.stat().st_mode
        script.unlink()  # it may be a link to uv's cache
        script.write_bytes(first.replace(wrong.encode(), right.encode()) + b"\n" + rest)
        script.chmod(mode & 0o777)


def _emptied(staging: Path) -> None:
    for path in staging.iterdir():
        remove(path) if path.is_dir() else path.unlink()


def _replay(lines: Sequence[str], on_line: Callable[[str], None]) -> None:
    for line in lines:
        on_line(line)
