"""What agent and launcher say to each other, and the plan of one slot. Plain data that travels as JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

LDCONFIG = "/run/squall/ldconfig"


class ToLauncher:
    """Kinds of frames from the agent."""

    MAKE = 1
    """A `SlotPlan` as JSON; with descriptors (socket, stdout, stderr) if it has `run`."""
    KILL = 2
    """{slot}: SIGKILL to everything in it."""
    PLACE = 3
    """{ticket, slot, template}: find and check the process that a template forked into a slot."""
    REMOVE = 4
    """{slot}: let go of its writable layer; it has ended."""
    ENTER = 5
    """{slot, ticket}, with descriptors (a file of words, stdout, stderr): run a command in a slot."""
    START = 6
    """{slot}, with descriptors (socket, stdout, stderr, a file of words): start the program of a slot that was made
    without one. For slots with an engine in them (gvisor/)."""


class FromLauncher:
    """Kinds of frames to the agent."""

    MADE = 16
    """{slot, init, pid}: host pids of its first process and, if it has `run`, of the runner."""
    NOT_MADE = 17
    """{slot, message}"""
    PLACED = 18
    """{ticket, pid, message}: its host pid, or why it is not what it should be."""
    ENDED = 19
    """{slot, status}: nothing of it is left. `status` of the runner; None when nobody saw it."""
    ENTERED = 20
    """{ticket, pid, message}: host pid of a command, or why it was not started."""
    LEFT = 21
    """{ticket, status}: a command has ended; None when nobody saw how."""
    STARTED = 22
    """{slot, pid, message}: host pid of the program that was to be started, or why there is none."""


class Bind(NamedTuple):
    """A file or folder of the host that a slot sees."""

    source: str
    target: str
    writable: bool = False
    mapped: bool = True
    """Ids are mapped, so that the host's root is the slot's."""
    device: bool = False
    """A device node, which works there; in all other binds device nodes do not."""


class Run(NamedTuple):
    """The program that a slot is started with."""

    argv: list[str]
    env: dict[str, str]
    may_fork_into_slots: bool = False
    """For templates: it may join slots that it is handed, and nothing else more than others."""


class Overlay(NamedTuple):
    """A folder of the host that the slot sees as if it could write to it."""

    lower: str
    """The folder; never written to."""
    above: str
    """A folder with `upper` and `work` for what the slot changes."""
    target: str
    inner: str
    """Where it is seen besides, writable also if `target` is not."""
    read_only: bool


class Bucket(NamedTuple):
    """A bucket that the slot sees as a folder."""

    server: str
    """Socket of the process that serves it."""
    target: str
    read_only: bool


class SlotPlan(NamedTuple):
    """Everything that makes one slot."""

    slot: str
    """Id, and name of its folder."""
    hostname: str
    ids: int
    """First of the 65,536 host ids that its user namespace has."""
    layers: list[str]
    """Folders of the host, bottom first; none is ever written to."""
    binds: list[Bind]
    files: dict[str, str]
    """Small files that it finds: path, text."""
    folder: str
    """Empty folder of the host; the launcher mounts the writable layer there."""
    writable_mib: int
    shared_memory_mib: int
    open_files: int
    cgroups: list[str]
    """Folders that its processes are counted in."""
    inside: str = ""
    """Slot of the template whose forks it takes."""
    run: Run | None = None
    overlays: list[Overlay] = []  # noqa: RUF012 — nobody adds to it
    links: list[list[str]] = []  # noqa: RUF012
    """Symbolic links that it finds: where, and what they say. For the libraries of devices."""
    libraries: list[str] = []  # noqa: RUF012
    """Folders whose libraries its programs find; `LDCONFIG` is among its binds then."""
    buckets: list[Bucket] = []  # noqa: RUF012 — likewise
    device: str = ""
    """Block device with an empty file system for its writable layer; "" = that is in memory."""

    def as_meta(self) -> dict[str, Any]:
        """For a frame."""
        run = self.run._asdict() if self.run else None
        lists = {name: [list(each) for each in getattr(self, name)] for name in ("binds", "overlays", "buckets")}
        return {**self._asdict(), **lists, "run": run}


def plan_of(meta: dict[str, Any]) -> SlotPlan:
    """The plan in a frame."""
    binds = [Bind(*bind) for bind in meta["binds"]]
    run = Run(**meta["run"]) if meta["run"] else None
    overlays = [Overlay(*overlay) for overlay in meta["overlays"]]
    buckets = [Bucket(*bucket) for bucket in meta["buckets"]]
    return SlotPlan(**{**meta, "binds": binds, "overlays": overlays, "buckets": buckets, "run": run})
