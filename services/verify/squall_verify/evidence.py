"""Evidence: everything that the checkers may look at. Plain facts of one run, as they were found; no judgement.

Five sources, each with its own trust: what the client saw (`seen`, `state.steps`), what the platform holds at the end
(`accepted`, `recorded`, `counted` and `state.schedules` are the law; `told` is a hint), what user code did (`effects`,
`state.web_runs`), what was metered (`used`), and what the harness itself did (`happened`, `deployed`, `settled`) and
looked at while the run went on (`samples`).
All times are unix seconds of one machine's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from squall_verify.state import State

Key = tuple[str, int]
"""Call and index of one input."""
MAIN, GUEST = "main", "guest"
"""The two workspaces of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One JOURNAL record."""

    call: str
    index: int
    pool: str
    function: str
    """Function id: the version that it must run on."""
    kind: str
    stored_at: float
    deadline: float
    seq: int = 0
    blob: str = ""
    workspace: str = MAIN
    webhook: str = ""
    """Where its end is to be told."""
    readable: bool = True
    """False: the harness put bytes there that are no call."""

    @property
    def key(self) -> Key:
        return self.call, self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One RESULTS record."""

    call: str
    index: int
    outcome: str
    attempt: str
    stored_at: float
    started_at: float = 0.0
    ended_at: float = 0.0
    node: str = ""
    container: str = ""
    blob: str = ""
    workspace: str = ""
    nonce: str = ""
    """Of the execution whose value it is; found in the payload."""
    error: str = ""
    """Kind of the error."""
    digest: str = ""
    """Of the whole record."""

    @property
    def key(self) -> Key:
        return self.call, self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One ATTEMPTS record, in stream order."""

    call: str
    index: int
    attempt: str
    kind: str
    user: int
    infra: int
    failed_at: float
    retry_at: float
    stored_at: float
    reason: str = ""

    @property
    def key(self) -> Key:
        return self.call, self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One EVENTS record."""

    call: str
    index: int
    event: str
    at: float
    attempt: str = ""
    node: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One line that user code wrote."""

    what: str
    """start, tick, raise, yield, end."""
    call: str
    index: int
    attempt: int
    nonce: str
    at: float
    pid: int
    op: str
    """The operation of the plan that it belongs to."""
    function: str
    version: int

    @property
    def key(self) -> Key:
        return self.call, self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """One metered interval."""

    call: str
    index: int
    attempt: str
    container: str
    started_at: float
    ended_at: float
    outcome: str
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One line of a client's log about an operation."""

    op: str
    what: str
    """invoke, ack, value, error, item, cancelling, cancelled, conflict, done, refused, unknown; and what a caller of
    another workspace tried (tried) or was shown (listed)."""
    at: float
    form: str = ""
    function: str = ""
    call: str = ""
    index: int = 0
    nonce: str = ""
    error: str = ""
    detail: str = ""
    seq: int = -1
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """A fault that was really injected."""

    name: str
    began: float
    ended: float
    victim: str = ""
    """Name of the part, or of what was hurt."""
    node: str = ""
    """Of an agent (or of the agent above a runner)."""
    pid: int = 0
    detail: str = ""
    skew_s: float = 0.0
    """How wrong the victim's clock was, and so the times that it wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """One deploy of the program: from when it was asked for until it was acknowledged."""

    version: int
    began: float
    ended: float
    workspace: str = MAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionFacts:
    """What was declared, as the platform stores it."""

    name: str
    max_retries: int = 0
    initial_delay_s: float = 1.0
    backoff: float = 1.0
    max_delay_s: float = 60.0
    timeout_s: float = 300.0
    max_containers: int | None = None
    min_containers: int = 0
    scaledown_window_s: float = 60.0
    max_inputs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the harness saw of the queues and claims at one moment of the run."""

    at: float
    claims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Ordinals of the live claims of each pool."""
    missing: tuple[Key, ...] = ()
    """Accepted, without a result, and in no queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The liveness phase."""

    healed_at: float
    settled_at: float | None
    """When nothing waited any more; None = never."""
    waiting: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(pending, leased) of each queue that was not empty in the end."""
    canaries: tuple[str, ...] = ()
    """What went wrong with the calls that were made after healing; empty = nothing."""
    empty_at: float | None = None
    """When no pool had a container any more; None = never within the time given."""
    left: Mapping[str, int] = field(default_factory=dict)
    """Containers of each pool in the end."""


INJECTING = ("late-call", "garbage-call")
"""Faults whose detail is the id of a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One run."""

    seed: int = 0
    seconds: float = 0.0
    accepted: tuple[Accepted, ...] = ()
    recorded: tuple[Recorded, ...] = ()
    counted: tuple[Counted, ...] = ()
    told: tuple[Told, ...] = ()
    used: tuple[Used, ...] = ()
    effects: tuple[Effect, ...] = ()
    seen: tuple[Seen, ...] = ()
    happened: tuple[Happened, ...] = ()
    skipped: tuple[str, ...] = ()
    """Planned faults that could not be injected, and why."""
    deployed: tuple[Deployed, ...] = ()
    functions: Mapping[str, FunctionFacts] = field(default_factory=dict)
    """By function id."""
    letters: tuple[Key, ...] = ()
    """Inputs that have a dead letter."""
    blobs: Mapping[str, str] = field(default_factory=dict)
    """Reference to "ok", "missing" or "different", of every blob that a record names."""
    vanished: tuple[str, ...] = ()
    """Records of the law that were seen during the run, and are another or gone in the end."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Call to what the gateway's API says of it, for some calls of one input."""
    samples: tuple[Sample, ...] = ()
    settled: Settled | None = None
    state: State = field(default_factory=State)
    """Dicts, queues, volumes, web functions, schedules and webhooks."""
    sandboxes: tuple[str, ...] | None = None
    """What is left of them when the platform has stopped; None = containers were none."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts that later checkers bring along with their faults."""

    @property
    def injected(self) -> set[str]:
        """Calls that faults have put into the journal, copies of what clients and schedules had called."""
        return {each.detail for each in self.happened if each.name in INJECTING}
