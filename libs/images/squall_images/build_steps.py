"""What each kind of step does in a build room. Owns their command lines; where layers lie is the store's."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from squall.errors import ImageBuildError
from squall.spec import digest
from squall_images.bases import needs_engine
from squall_images.beneath import beneath
from squall_images.build_room import OWN, Bind, OnLine, Room, Work
from squall_images.chain import HOME, PATH, Configuration, Step
from squall_images.layered import KEY_DIGITS, Python
from squall_images.locks import file_lock
from squall_images.step_volumes import NOTHING_BROUGHT, Brought
from squall_images.trees import remove

APT_LISTS_FRESH_S = 6 * 3600.0
APT_REMAINS = (
    "var/log/apt",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
)
APT_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~-]+)?")
"""Not an option, and not a file of the image's: packages run as root, with the archives that others install from."""
RUN_FUNCTION = """
import base64, importlib, pickle, sys
sys.path[:0] = [{code!r}]
sys.path += {own!r}
function = importlib.import_module({module!r})
for name in {function!r}.split("."):
    function = getattr(function, name)
args, kwargs = pickle.loads(base64.b64decode(open({arguments!r}).read()))
result = function(*args, **kwargs)
if hasattr(result, "__await__"):
    import asyncio
    async def wait():
        return await result
    asyncio.run(wait())
"""

Fetch = Callable[[Mapping[str, object], Path], Awaitable[None]]
"""Bring the zip of a step's files and extract it to a folder that does not exist yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """One step that is under way."""

    step: Step
    room: Room
    python: Python | None
    home: Path
    before: str
    """Key of the layer below."""
    fetch: Fetch
    timeout_s: float
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The step's secrets."""
    volumes: Brought = NOTHING_BROUGHT
    """The step's volumes."""

    @property
    def env(self) -> dict[str, str]:
        """Variables of its commands."""
        own = self.step.arguments.get("env") or {}
        return {
            "PATH": PATH,
            "HOME": HOME,
            **self.step.seen.env,
            **{str(name): str(value) for name, value in own.items()},
        }

    async def run(
        self, command: Sequence[str], on_line: OnLine, *binds: Bind, env: Mapping[str, str] | None = None
    ) -> None:
        """Run one command of the step."""
        seen: Configuration = self.step.seen
        timeout_s = min(float(self.step.arguments.get("timeout_s") or self.timeout_s), self.timeout_s)
        work = Work(
            command=command,
            env={**self.env, **self.volumes.env, **(env or {})},
            workdir=seen.workdir or HOME,
            binds=(*binds, *self.volumes.binds),
            hidden=self.hidden,
            timeout_s=timeout_s,
        )
        await self.room.run(self.step.title, work, on_line)

    async def files(self, name: str) -> Path:
        """The user's files of one argument, as a folder."""
        reference = self.step.arguments.get(name)
        if not isinstance(reference, Mapping):
            raise ImageBuildError(f"the step {self.step.kind} does not say where its files are", step=self.step.kind)
        folder = self.room.staging / f"files-{name.strip('_')}"
        await self.fetch(reference, folder)
        return folder


async def make(making: Making, on_line: OnLine) -> None:
    """Fill the layer of a step."""
    match making.step.kind:
        case "run_commands":
            await _run_commands(making, on_line)
        case "apt_install":
            await _apt_install(making, on_line)
        case "run_function":
            await _run_function(making, on_line)
        case "add_local":
            await _add_local(making)
        case kind:
            raise needs_engine(kind)


async def _run_commands(making: Making, on_line: OnLine) -> None:
    for command in making.step.arguments.get("commands") or ():
        await making.run([*making.step.seen.shell, str(command)], on_line)


async def _apt_install(making: Making, on_line: OnLine) -> None:
    """Lists and archives are kept for every image that is the same up to here; they are no part of a layer."""
    if making.hidden:
        # Variables can lead apt anywhere, and what it writes here is installed by others.
        raise ImageBuildError("apt_install takes no secrets", fix="Use run_commands.", step=making.step.kind)
    wanted = _install(making.step)
    name = _apt_key(making)
    root = making.home / "apt" / name
    for folder in ("lists", "archives"):
        (root / folder / "partial").mkdir(parents=True, exist_ok=True)
    mark = root / "updated"
    async with file_lock(making.home / "locks" / f"apt-{name}"):
        if not await asyncio.to_thread(_fresh, mark):
            await _apt(making, root, ["update"], on_line)
            mark.touch()
        try:
            await _apt(making, root, wanted, on_line)
        except ImageBuildError:
            on_line("apt-get install failed: once more with new lists")
            remove(making.room.changes)
            await _apt(making, root, ["update"], on_line)
            mark.touch()
            await _apt(making, root, wanted, on_line)
    for remain in APT_REMAINS:
        path = beneath(making.room.changes, remain)
        remove(path) if path.is_dir() else path.unlink(missing_ok=True)


def _install(step: Step) -> list[str]:
    packages = [str(package) for package in step.arguments.get("packages") or ()]
    for package in packages:
        if not APT_PACKAGE.fullmatch(package):
            raise ImageBuildError(
                f"{package!r} is not the name of a Debian package",
                fix='Write "name" or "name=version"; for a file or an option use run_commands("apt-get install ...").',
                step=step.kind,
            )
    return ["install", "--yes", "--no-install-recommends", *packages]


async def _apt(making: Making, root: Path, words: Sequence[str], on_line: OnLine) -> None:
    # apt's own user would have to own the shared folders.
    # No sync of each file: a layer is published when all of it is there.
    options = ("-o", "APT::Sandbox::User=root", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-unsafe-io")
    await making.run(
        ["apt-get", *options, *words],
        on_line,
        Bind(source=root / "lists", target="/var/lib/apt/lists", read_only=False),
        Bind(source=root / "archives", target="/var/cache/apt/archives", read_only=False),
        env={"DEBIAN_FRONTEND": "noninteractive"},
    )


def _fresh(mark: Path) -> bool:
    try:
        return time.time() - mark.stat().st_mtime < APT_LISTS_FRESH_S  # noqa: TID251  # against the time of a file
    except FileNotFoundError:
        return False


def _apt_key(making: Making) -> str:
    """Of everything that apt-get runs with. It writes to the lists and archives, and does not check those that are
    there: an image whose apt-get is somebody's own must share them with nobody else's."""
    return digest({"below": making.before, "env": making.env, "workdir": making.step.seen.workdir})[:KEY_DIGITS]


async def _run_function(making: Making, on_line: OnLine) -> None:
    if making.python is None:
        raise ImageBuildError("run_function needs an image with Python", fix="Give `add_python=` to from_registry.")
    arguments = making.step.arguments
    given = making.room.staging / "arguments"
    given.write_text(str(arguments.get("arguments") or base64.b64encode(b"").decode()))
    binds = [Bind(source=given, target=f"{OWN}/arguments")]
    if "_code" in arguments:
        # Paths of a bundle are those of a container: the user's modules are below /root.
        code = await making.files("_code")
        binds.append(Bind(source=code / HOME.lstrip("/"), target=f"{OWN}/code"))
    own = []
    for name in ("squall", "squall_runner", "cloudpickle"):
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations:
            binds.append(Bind(source=Path(next(iter(found.submodule_search_locations))), target=f"{OWN}/sdk/{name}"))
            own = [f"{OWN}/sdk"]
    program = RUN_FUNCTION.format(
        code=f"{OWN}/code",
        own=own,
        module=str(arguments.get("_module")),
        function=str(arguments.get("function")),
        arguments=f"{OWN}/arguments",
    )
    await making.run([making.python.executable, "-B", "-u", "-c", program], on_line, *binds)


async def _add_local(making: Making) -> None:
    """Files as they are in the zip: their paths are those in the image."""
    files = await making.files("files")
    await asyncio.to_thread(_adopt, files, making.room.changes)


def _adopt(files: Path, changes: Path) -> None:
    if changes.exists():
        shutil.rmtree(changes)
    os.rename(files, changes)
