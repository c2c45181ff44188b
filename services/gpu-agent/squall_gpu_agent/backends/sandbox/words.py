"""What agent and launcher say to each other, and the plan of one slot. Plain data that travels as JSON."""

from __future__ import annotations

from typing import Any, NamedTuple


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


class Bind(NamedTuple):
    """A file or folder of the host that a slot sees."""

    source: str
    target: str
    writable: bool = False
    mapped: bool = True
    """Ids are mapped, so that the host's root is the slot's."""


class Run(NamedTuple):
    """The program that a slot is started with."""

    argv: list[str]
    env: dict[str, str]
    may_fork_into_slots: bool = False
    """For templates: it may join slots that it is handed, and nothing else more than others."""


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

    def as_meta(self) -> dict[str, Any]:
        """For a frame."""
        run = self.run._asdict() if self.run else None
        return {**self._asdict(), "binds": [list(bind) for bind in self.binds], "run": run}


def plan_of(meta: dict[str, Any]) -> SlotPlan:
    """The plan in a frame."""
    binds = [Bind(*bind) for bind in meta["binds"]]
    run = Run(**meta["run"]) if meta["run"] else None
    return SlotPlan(**{**meta, "binds": binds, "run": run})
