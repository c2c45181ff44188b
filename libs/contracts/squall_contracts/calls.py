"""Messages of a call's life: accepted, its result, its failed attempts, its history, its cancel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall_contracts.envelope import HotMessage

IDEM = "idem"
SpanVector = list[list[Any]]
"""Spans that travel with a message instead of being exported hop by hop: [name, parent name, service, start ns,
duration ns, attributes] each. See squall_contracts.spans for the names and for how rows become a tree of spans."""

DEADLINE_HEADER = "Squall-Deadline"
"""JOURNAL: unix seconds after which the call must not start. The law; the message's TTL only cleans up."""
TRACEPARENT_HEADER = "traceparent"
REQUEUED_HEADER = "Squall-Requeued"
"""WORK: the reconciler put the input back, so somebody may have had it before; its history must be read before a start,
although it is delivered for the first time."""


@dataclass(frozen=True)
class CallRequested(HotMessage):
    """One accepted input. Subject `calls.r.ss.<pool>.<call>.<index>`, written by the gateway only."""

    TYPE: ClassVar[str] = "call_requested"

    call: str
    index: int
    pool: str
    function: str
    """Function id: the version that was current when the call was accepted; it runs in full on that one."""
    workspace: str
    app: str
    kind: str
    """`squall.spec.Kind`."""
    accepted_at: float
    deadline: float
    method: str = ""
    encoding: str = "pickle"
    payload: bytes = b""
    blob: str | None = None
    """`<sha256>:<bytes>` when the payload is in the blob store."""
    reply_to: str | None = None
    """Core subject on which a gateway waits for the result record."""
    parent: str | None = None
    traceparent: str = ""
    """Of the caller's span `call`; `attempt` and the rest become its children."""
    spans: SpanVector = field(default_factory=list)
    parameters: str = ""
    """Class parameters of a spawned call, as in its `PoolRecord`: a redrive finds the pool of another version by it."""
    redriven_from: str = ""
    """`<call>.<index>` of the dead letter that this call repeats."""
    keyed: bool = False
    """It has an idempotency key: its result is kept for longer than the key."""
    webhook: str = ""
    """URL that is told when the input has ended: its call's own, or its function's."""


@dataclass(frozen=True)
class KeyedCall(HotMessage):
    """The call that has an idempotency key. Bucket `idem`, key `<workspace>.<function>.<hash of the key>`; created by
    a gateway before the call is accepted, gone after a day."""

    TYPE: ClassVar[str] = "keyed_call"

    call: str
    payload_hash: str
    at: float


@dataclass(frozen=True)
class CallResult(HotMessage):
    """The one recorded result of an input. Subject `results.r.ss.<workspace>.<call>.<index>`; the first write wins."""

    TYPE: ClassVar[str] = "call_result"

    call: str
    index: int
    workspace: str
    outcome: str
    """`squall.spec.Outcome`."""
    attempt: str
    """Id of the execution that produced it; empty when none ran (cancelled, expired)."""
    encoding: str = "pickle"
    payload: bytes = b""
    """The value, or the pickled exception, or empty."""
    blob: str | None = None
    error: dict[str, Any] | None = None
    """See `squall.http_api.protocol.ResultMeta.error`."""
    items: int | None = None
    node: str = ""
    container: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    function: str = ""
    pool: str = ""


@dataclass(frozen=True)
class AttemptFailed(HotMessage):
    """A failed attempt, written and acknowledged before the input goes back to the queue. The law for counting retries.

    Subject `attempts.r.ss.<workspace>.<call>.<index>`; the last message carries the totals."""

    TYPE: ClassVar[str] = "attempt_failed"

    call: str
    index: int
    attempt: str
    kind: str
    """"user" (exception or time-out, uses a retry) or "infra" (crash, OOM, lost; does not)."""
    user_failures: int
    """User failures so far, this one included."""
    infra_failures: int
    failed_at: float
    retry_at: float
    reason: str = ""
    history: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CallEvent(HotMessage):
    """A line of an input's history; a hint, never the law. Subject `events.r.ss.<workspace>.<call>.<index>`."""

    TYPE: ClassVar[str] = "call_event"

    call: str
    index: int
    event: str
    """started, finished, attempt_failed, superseded, skipped, cancelled, expired."""
    at: float
    attempt: str = ""
    node: str = ""
    container: str = ""
    detail: str = ""


@dataclass(frozen=True)
class CancelRequested(HotMessage):
    """Core message `cancel.r.<pool>`: stop what runs of this call. Agents remember it for 60 s."""

    TYPE: ClassVar[str] = "cancel_requested"

    call: str
    pool: str
    index: int | None = None
    """None = every input."""
    terminate_containers: bool = False


@dataclass(frozen=True)
class ItemYielded(HotMessage):
    """Core message `items.r.<call>`: one item of a generator."""

    TYPE: ClassVar[str] = "item_yielded"

    call: str
    attempt: str
    seq: int
    encoding: str = "pickle"
    payload: bytes = b""
    blob: str | None = None
    workspace: str = ""
    """Whose call it is: callers choose ids, and two workspaces may have the same one. Empty: of an older agent."""


@dataclass(frozen=True)
class ItemsTaken(HotMessage):
    """Core message `credit.r.<call>`: the caller has taken this many items of the attempt; the generator may go on."""

    TYPE: ClassVar[str] = "items_taken"

    call: str
    attempt: str
    taken: int
