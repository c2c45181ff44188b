"""What callers saw of state and of web functions, what the platform says of schedules, and what came of webhooks, as
evidence. No judging."""

from __future__ import annotations

from dataclasses import dataclass

NEVER = float("inf")
DONE, REFUSED, CONFLICT, CUT, FAILED, UNKNOWN = "done", "refused", "conflict", "cut", "failed", "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One request to a dict, a queue, a volume or a web function, as its caller saw it."""

    op: str
    number: int
    """Within its operation."""
    kind: str
    """dict, queue, volume, web."""
    what: str
    place: str = ""
    """Key, partition, group of files, method."""
    values: tuple[str, ...] = ()
    """What it would write, or how much it asked for."""
    began: float
    ended: float = NEVER
    outcome: str = UNKNOWN
    """done; refused (and nothing was done); conflict; cut (an answer that is no whole one); failed (an error that
    nobody has promised); unknown (maybe done)."""
    got: tuple[str, ...] = ()
    """What it was told."""
    version: int = 0
    """Of a volume."""
    detail: str = ""
    workspace: str = "main"

    @property
    def name(self) -> str:
        return f"{self.op}.{self.number}"

    @property
    def done(self) -> bool:
        return self.outcome == DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class WebRun:
    """One execution of the web function."""

    nonce: str
    at: float
    method: str
    pid: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """One schedule in the end."""

    schedule: str
    workspace: str
    function: str
    """Its name."""
    since: float
    handled: float
    """The last tick that was decided on."""
    called: int
    missed: int
    paused: bool
    ticks: tuple[tuple[float, str], ...] = ()
    """Each tick from the first to the last that was decided on, and the id that its call must have."""
    following: tuple[str, ...] = ()
    """Calls of the next tick, and of all until the pause: made while the bus was slow, and the schedule was paused
    before that was written down."""
    paused_at: float | None = None
    """When the harness was told that it is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One request that the receiver of webhooks got."""

    id: str
    """`webhook-id`."""
    at: float
    url: str
    key: tuple[str, int]
    """Call and index that it tells of."""
    outcome: str
    digest: str = ""
    """Of the body."""
    signed: bool = True
    """As the workspace signs that its path names."""
    answer: int = 204
    """0 = none: the connection was cut."""

    @property
    def taken(self) -> bool:
        return self.answer == 204


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All of it."""

    steps: tuple[Step, ...] = ()
    web_runs: tuple[WebRun, ...] = ()
    schedules: tuple[Scheduled, ...] = ()
    heard: tuple[Heard, ...] = ()
