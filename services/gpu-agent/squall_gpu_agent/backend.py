"""The backend interface: how the agent turns a function into running containers, whatever the isolation.

Owns the vocabulary between the agent's call path and a backend (`backends/process.py` and its siblings):
requests, events, ends, failures. Owns no process and decides nothing. Bytes in payloads are the user's: never
unpickled here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from squall.spec import Encoding, FunctionSpec, ImageSpec, VolumeMount
from squall_images.eviction import Freed, Unwanted
from squall_images.machine_packages import needs_sandbox

EXIT_GRACE_S = 30.0
"""How long `@exit` hooks may take."""
COMMIT_S = 300.0
"""How long the last commit of its volumes may take after that."""
ITEM_WINDOW = 256
"""Items a generator may be ahead of the credits that its reader granted."""


class Isolation(StrEnum):
    """What a backend offers; a function may demand at least one of these. Ordered from weakest to strongest."""

    PROCESS = "process"
    SANDBOX = "sandbox"
    GVISOR = "gvisor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this machine lets a backend do; measured once when the agent starts."""

    backend: str
    isolation: Isolation
    python_versions: tuple[str, ...]
    """Minor versions ("3.11") that images can be made for here."""
    mount_namespaces: bool
    """Whether bundles with files at absolute paths can be shown there."""
    huge_pages: bool
    """Whether templates get huge pages, which makes forks of large heaps cheap."""
    plain: bool = False
    """Functions that demand no isolation run as plain processes all the same; the others get what `backend` says."""
    no_disks: str = ""
    """Why containers cannot have an `ephemeral_disk` of more than `DISK_IN_MEMORY_MIB`; "" = they can."""
    no_buckets: str = ""
    """Why containers cannot have buckets mounted; "" = they can."""
    no_gpus: str = ""
    """Why containers cannot have GPUs, whatever the machine has; "" = they can."""
    notes: tuple[str, ...] = ()
    """What an operator should know, each with what to do about it."""

    @property
    def backends(self) -> tuple[str, ...]:
        """Their names, weakest first."""
        return (Isolation.PROCESS.value, self.backend) if self.plain else (self.backend,)

    def isolates(self, spec: FunctionSpec) -> bool:
        """Whether containers of this function are isolated here."""
        if self.isolation is Isolation.PROCESS:
            return False
        return not self.plain or spec.isolation != Isolation.PROCESS or needs_sandbox(spec.image)


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """An image made ready on this machine."""

    image_id: str
    python: Path
    """Interpreter to start; for the process backend `<environment>/bin/python`, with layers its path inside of them."""
    site_packages: Path | None
    """Where the image's packages are; None for an image without packages, or where its interpreter looks by itself."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that the image's `env` steps declare."""
    layers: tuple[Path, ...] = ()
    """For isolating backends: folders that are stacked to the container's root, bottom first, never written to."""
    workdir: str = ""
    """Folder that containers start in; empty for /root."""
    pulled: bool = False
    """Something of it came from a registry just now."""


class Phase(NamedTuple):
    """One part of a cold start. Phases of a container do not overlap and are in order."""

    name: str
    """image.ensure (image.pull, if it came from a registry), sandbox.create,
    runner.connect, code.import, enter.snap, enter or web.open. The start that also makes the
    template has sandbox.create twice: the template's, then the container's."""
    start_ns: int
    """Wall clock, nanoseconds since the epoch."""
    duration_ns: int


class FailureKind(StrEnum):
    """Who has to act when an input failed."""

    USER = "user"
    """The user's code raised."""
    CANCELLED = "cancelled"
    """The input was cancelled and its code has stopped."""
    DESERIALIZATION = "deserialization"
    """The arguments could not be loaded in the container."""
    SERIALIZATION = "serialization"
    """The function returned, but its result cannot be sent."""
    INFRA = "infra"
    """The platform failed; the user's code is not to blame."""
    DISK_FULL = "disk_full"
    """What the container may write to is full: its code let the error pass, or its result found no room."""


class StartFailureKind(StrEnum):
    """Why there is no container."""

    USER_CODE = "user_code"
    """Import of the user's module, or an `@enter` hook, raised."""
    IMAGE = "image"
    """The image could not be made on this machine."""
    IMAGE_LOST = "image_lost"
    """The image was built, and is to be had nowhere any more."""
    INFRA = "infra"
    """The machine or the platform failed."""
    KILLED = "killed"
    """Something that is not its agent killed it (SIGKILL): the machine for want of memory, or somebody."""
    TIMEOUT = "timeout"
    """Not ready within the function's `startup_timeout`."""


class StartFailed(Exception):
    """A container could not be started. Import and `@enter` errors of user code come back as this, as data."""

    def __init__(  # noqa: PLR0913 — what is told of it
        self,
        kind: StartFailureKind,
        message: str,
        *,
        type_name: str = "",
        traceback: str = "",
        pickled: bytes | None = None,
        phases: Sequence[Phase] = (),
        disk: FullDisk | None = None,
    ) -> None:
        super().__init__(message)
        self.disk = disk
        """The container's own disk, if that it was full is what failed."""
        self.kind = kind
        self.message = message
        self.type_name = type_name
        """Class of the user's exception, with its module; empty for other kinds."""
        self.traceback = traceback
        """Text trimmed to the user's frames; for `image` the end of the build's output."""
        self.pickled = pickled
        """The user's exception, pickled, if that is possible."""
        self.phases = tuple(phases)
        """What was done before it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Text that came out of a container, carriage returns intact; not necessarily whole lines."""

    container: str
    stream: str
    """"stdout", "stderr", or "system" for words of the platform."""
    text: str
    call: str | None = None
    """The call that printed it, where that is known."""
    index: int | None = None


@dataclass(slots=True, kw_only=True)  # made at every input: a frozen one is set field by field, 3 us more
class InputRequest:
    """One attempt at one input. Exactly one of `payload` and `path` is set."""

    call: str
    index: int = 0
    attempt: int = 0
    method: str = ""
    """Name of the class's method; "" for a plain function."""
    encoding: Encoding = Encoding.PICKLE
    """Of the arguments; the result and the items come back in the same one."""
    payload: bytes | None = None
    path: Path | None = None
    """File with the arguments, readable by the container; the caller deletes it after the end."""
    traceparent: str | None = None
    """W3C context of the span `attempt`; spans of user code become its children."""
    on_begun: Callable[[], None] | None = None
    """Called when the code begins, for inputs that wait in their container until a batch is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One value that a generator yielded. Exactly one of `payload` and `path` is set."""

    call: str
    index: int
    seq: int
    """From 0, without gaps within one attempt."""
    encoding: Encoding
    payload: bytes | None = None
    path: Path | None = None
    """A file (values over 64 KiB) that now belongs to the caller: the container's end does not remove it."""


@dataclass(slots=True, kw_only=True)  # made at every input: a frozen one is set field by field, 3 us more
class Output:
    """The input's code returned. For a generator: it is exhausted, and the payload is None's encoding."""

    encoding: Encoding
    payload: bytes | None = None
    path: Path | None = None
    """A file (results over 64 KiB) that now belongs to the caller: the container's end does not remove it."""
    size: int
    """Bytes of the result, inline or in the file."""
    items: int = 0
    """How many items were yielded."""
    started_ns: int
    """Wall clock at which user code began."""
    ended_ns: int
    spans: tuple[Phase, ...] = ()
    """arguments.load, user code, result.dump as measured in the container."""


class FullDisk(NamedTuple):
    """A file system that was full, as a runner saw it."""

    place: str
    """Where it is mounted."""
    used_bytes: int
    files: int
    """How many there are, if it is the number of files that has come to its end."""
    still: bool
    """Nothing has been removed since."""
    limit_mib: int = 0
    """What it holds: the agent's word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The input ended with an error; the container lives on."""

    kind: FailureKind
    type_name: str
    """Class of the exception ("ValueError"), without its module."""
    module: str
    message: str
    traceback: str
    """Text trimmed to the user's frames, causes included."""
    pickled: bytes | None = None
    """The exception (with its `__cause__`), pickled; None when that is impossible or too large."""
    items: int = 0
    """How many items were yielded before."""
    started_ns: int = 0
    ended_ns: int = 0
    spans: tuple[Phase, ...] = ()
    disk: FullDisk | None = None
    """What an OSError "no space left" was about, if it was about a disk. Any, unless `kind` says that it is the
    container's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended."""

    code: int | None
    """Exit code; None when a signal ended it or nobody saw the status."""
    signal: int | None
    oom: bool = False
    """It was killed for exceeding its memory limit."""
    reason: str
    """In words a user understands: "stopped", "exited with code 3", "killed by SIGSEGV", ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The container ended while the input ran: nothing is known about the input's effects."""

    exit: Exit


@dataclass(frozen=True, slots=True, kw_only=True)
class NotBegun:
    """Nothing of the input has run: it was taken back, or its container ended before its turn came."""

    exit: Exit | None = None
    """How the container ended; None = it lives."""


End = Output | Failed | Lost
"""How the code of an input ended."""

OnBegin = Callable[[], None]
OnItem = Callable[[Item], None]
OnLog = Callable[[Log], None]
OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedVolume:
    """A volume that a container is to see as a folder."""

    mount: VolumeMount
    lower: Path
    """Its files, as they are when the container starts. Never written to."""
    version: int
    manifest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedBucket:
    """A bucket that a container is to see as a folder."""

    path: str
    read_only: bool
    server: Path
    """Socket of the process that serves it, to one mount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """Everything that makes one container."""

    container_id: str
    app_id: str
    function_id: str
    """Identity of the function version plus options: one template never serves two of these."""
    spec: FunctionSpec
    code_dir: Path
    """The extracted bundle: `<code_dir>/root/app.py` is `/root/app.py` in the container. Only byte-code (`__pycache__`)
    is ever written there.
    """
    params: Mapping[str, Any] | None = None
    """Values of class parameters; bytes are `{"base64": "..."}`. None for a plain function."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Declared environment and secrets, set before user code is imported; wins over the image's."""
    env_version: str = ""
    """Changes when a secret's value does; part of the template's key besides the values themselves."""
    socket_path: Path | None = None
    """Unix socket of the agent over which user code may make calls; SQUALL_SOCKET in the container."""
    token: str = ""
    """What authenticates those calls; SQUALL_TOKEN in the container."""
    gpu_env: Mapping[str, str] = field(default_factory=dict)
    """Per-container variables that arrive after a fork (CUDA_VISIBLE_DEVICES and the like)."""
    gpus: tuple[str, ...] = ()
    """Devices that are its own; not those that exist in name only."""
    volumes: tuple[MountedVolume, ...] = ()
    """Shown as folders that can be written to; what is written stays apart until the container commits it."""
    buckets: tuple[MountedBucket, ...] = ()
    web_key: str = ""
    """With which the container offers connections for web requests at `socket_path`; empty: it has no web function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoTemplate:
    """Containers of this function are started plainly."""

    reason: str
    """For the trace and for `squall container list`: "import left 2 threads running (pool-1)"."""
    lasting: bool = False
    """It will be the same next time."""
    of_volumes: bool = False
    """And whatever its volumes hold then."""


OnCommandEnd = Callable[[int | None], None]
"""Gets the wait status; None when nobody saw it."""
StartInside = Callable[[Sequence[str], Sequence[int], OnCommandEnd], Awaitable[int]]


class CommandFailed(Exception):
    """A command could not be started; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """How a command is run that shall see what the container's code sees."""

    start: StartInside
    """Its pid, which is also its session. It gets the descriptors as stdout and stderr, and does not outlive the agent,
    however that ends; with the container's end it is killed. Raises `CommandFailed`."""


class Template(Protocol):
    """An initialised parent of one function version. Containers are forked from it."""

    @property
    def key(self) -> str:
        """Hash of everything that went into it."""

    @property
    def pid(self) -> int:
        """Its process."""

    def retire(self) -> None:
        """Fork no more; end when the last container forked from it has ended."""


class Container(Protocol):
    """A running container. All methods belong to the agent's event loop; none may be called from a thread."""

    @property
    def id(self) -> str:
        """As requested."""

    @property
    def pid(self) -> int:
        """Process id of the runner on the host."""

    @property
    def how(self) -> str:
        """One of "fork" (of a template that had imported the code), "restore" (from the memory of one, in gVisor) and
        "fresh" (it imported for itself)."""

    @property
    def why(self) -> str:
        """Why it was neither forked nor restored; "" when it was."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The cold start, in order."""

    @property
    def scratch(self) -> Path:
        """Its folder on the host; deleted when the container has ended."""

    @property
    def incoming(self) -> Path:
        """Where payload files are written before they are moved to `scratch`. Where containers are isolated, out of
        reach of their code, which could put something else in the place of a file that is being written and checked.
        """

    @property
    def inside(self) -> Inside | None:
        """For commands beside its runner; None where that is not possible."""

    @property
    def not_inside(self) -> str:
        """Why not, in words for users."""

    @property
    def disk_mib(self) -> int:
        """Of the disk that its payloads share with what its code writes; 0 = it has none of its own."""

    @property
    def running(self) -> frozenset[tuple[str, int]]:
        """Inputs that were given to it and have not ended: (call, index)."""

    @property
    def lines_up(self) -> bool:
        """Whether it takes inputs ahead at the moment: they wait in it, in order, and one begins when the one before
        it ends. Only containers with one slot ever do, and none while an input in them takes long."""

    async def run(
        self, request: InputRequest, on_item: OnItem | None = None, on_begin: OnBegin | None = None
    ) -> End | NotBegun:
        """Run one input to its end. Never raises for what user code does; a dead container is `Lost`.

        `on_begin` is called when its turn has come: at once, unless it waits in line. Until then it can be taken back
        (`cancel`, `recall`), and an end of the container leaves it `NotBegun`.
        `on_item` is called for each yielded item, in order, before this returns; so is `on_log` of the start
        for everything that the input printed. Cancelling the awaiting task cancels the input too, without
        waiting. At most `spec.scaling.max_inputs` at a time, and while `lines_up` some more: the caller counts.
        """

    def recall(self) -> None:
        """Take back every input that has not begun. Each such `run` returns `NotBegun`, or its end if it did begin."""

    def credit(self, call: str, index: int, n: int) -> None:
        """Allow a generator `n` more items than `ITEM_WINDOW` and earlier credits allowed."""

    def cancel(self, call: str, index: int) -> None:
        """Stop one input. Its `run` returns `Failed(kind=CANCELLED)` once its code has stopped, or its normal
        end; `NotBegun` if its turn had not come.

        Async code: its task is cancelled. Sync code, one slot: `InputCancellation` is raised in it. Sync code
        in a container with several slots cannot be stopped alone: the whole container is interrupted, and the
        `run`s of its other inputs return `Lost`. Code that ignores all this is for the caller to `kill`.
        """

    def when_enough(self, tell: Callable[[], None]) -> None:
        """`tell` is called when its code wants no more inputs, before the end of any input is told that ended
        afterwards; at once if it has said so already. Nothing that waits in line begins in it from then on."""

    async def drain(self) -> None:
        """Returns when no input runs. The caller sends no more inputs."""

    async def stop(self, grace_s: float = EXIT_GRACE_S, commit_s: float = COMMIT_S) -> Exit:
        """Interrupt running inputs, run `@exit` hooks, end. Killed after `grace_s`; if only the last commit of its
        volumes is left then, after `commit_s` more."""

    def kill(self, reason: str = "killed") -> None:
        """SIGKILL to everything in the container, now. `reason` goes into its `Exit`."""

    async def wait(self) -> Exit:
        """How it ended. Any number of waiters, at any time."""


class Backend(Protocol):
    """Makes containers on this machine."""

    async def probe(self) -> Capabilities:
        """What works here, measured. Cheap after the first time."""

    async def ensure_root(self, image: ImageSpec, on_log: OnText) -> Root:
        """The image, made if it is not here yet; equal images are made once. Raises `StartFailed(image)`."""

    def images(self) -> tuple[str, ...]:
        """Ids of images that are on this machine, those used last first."""

    async def sweep_images(self, now: float) -> None:
        """Keep images within their share of the disk; those that something runs of stay. Raises `OSError`."""

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """Remove images that nothing needs; those that something runs of stay. Raises `OSError`."""

    async def template(self, request: ContainerRequest, on_log: OnLog) -> Template | NoTemplate:
        """The template for such containers, made if needed (once for any number of callers)."""

    async def start(self, request: ContainerRequest, on_log: OnLog) -> Container:
        """A container that is ready for inputs: image ensured, code imported, `@enter` hooks done.

        Forked from the template where `spec.use_template` and the template allow it. Takes at most
        `spec.startup_timeout_s`. `on_log` gets everything it prints until it ends. Raises `StartFailed`.
        """

    async def close(self) -> None:
        """Kill everything that this backend started. Nothing outlives it."""
