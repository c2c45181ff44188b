"""A held call: one delivery at this agent, from its lease to its end, and all that is known about it.

Owns the state (moved on only through policy/lifecycle.py) and the fence: whether this agent may still speak for it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from squall.errors import InvalidError
from squall.ids import check_call_id
from squall.spec import Encoding, Kind
from squall_bus import Delivery
from squall_contracts.calls import CallRequested
from squall_contracts.envelope import BadMessage
from squall_contracts.topology import LEASE_S
from squall_gpu_agent.policy.lifecycle import FINAL, TRANSITIONS, Event, State, advance
from squall_gpu_agent.policy.retry import Totals

if TYPE_CHECKING:
    from squall_gpu_agent.containers import PooledContainer

KINDS = {kind.value: kind for kind in Kind}
ENCODINGS = {encoding.value: encoding for encoding in Encoding}
FENCE_S = LEASE_S
"""The queue may have given the call to somebody else this long after it last heard of us."""


def read_request(data: bytes) -> CallRequested:
    """The call in a delivery. Raises `BadMessage` also for values that no gateway of today would write."""
    request = CallRequested.decode(data)
    try:
        check_call_id(request.call)
    except (InvalidError, TypeError) as error:
        raise BadMessage(f"{request.TYPE}: {error}") from error
    if request.kind not in KINDS or request.encoding not in ENCODINGS:
        raise BadMessage(f"{request.TYPE}: kind {request.kind!r} in {request.encoding!r}")
    return request


class _Chance:
    """Random hex digits for ids of attempts: drawn many at a time, for each is a system call."""

    DIGITS = 6
    STOCK = 256

    def __init__(self) -> None:
        self._digits = ""

    def take(self) -> str:
        """Six that were never given before."""
        if not self._digits:
            self._digits = secrets.token_hex(self.STOCK * self.DIGITS // 2)
        taken, self._digits = self._digits[: self.DIGITS], self._digits[self.DIGITS :]
        return taken


_chance = _Chance()


class Held:
    """One delivery. Times named `_at` are monotonic seconds, `_ns` wall-clock nanoseconds for the trace."""

    __slots__ = (
        "attempt",
        "attempts_seq",
        "cancelled",
        "cold",
        "confirmed_at",
        "container",
        "delivered_ns",
        "delivery",
        "earlier",
        "ended_ns",
        "key",
        "leased_at",
        "number",
        "place",
        "recorded_ns",
        "renewed_at",
        "request",
        "run_s",
        "stale",
        "started_at",
        "started_ns",
        "state",
        "taken_away",
        "terminate",
        "timed_out",
        "told_started",
        "totals",
    )

    def __init__(self, request: CallRequested, delivery: Delivery, *, leased_at: float, now_ns: int) -> None:
        self.request = request
        self.key = (request.call, request.index)
        """Call and index: which input of its container it is."""
        self.place = (request.pool, request.call, request.index)
        """Which input of this machine. Callers choose ids of calls: two workspaces may have the same."""
        self.delivery = delivery
        self.state = State.LEASED
        self.leased_at = leased_at
        self.confirmed_at = leased_at
        """When the queue last knew, for certain, that we have it."""
        self.renewed_at = leased_at
        """When we last told it so."""
        self.stale = False
        """Sticky: a lease that was lost once is never ours again, even if the queue confirms it (the confirmation
        may be about the next holder's delivery)."""
        self.totals = Totals()
        self.attempts_seq = 0
        """Sequence of the newest ATTEMPTS record; 0 = there is none."""
        self.earlier: list[str] = []
        self.number = 1
        self.attempt = ""
        self.container: PooledContainer | None = None
        self.cancelled = False
        self.cold = False
        """It waited for its container, as the first of those that did."""
        self.terminate = False
        """The cancel asks for the container's end as well."""
        self.taken_away = ""
        """Why its container was being taken away when its code ended; what becomes of it later is no cause."""
        self.timed_out = False
        self.told_started = False
        self.delivered_ns = now_ns
        self.started_ns = self.ended_ns = self.recorded_ns = 0
        self.started_at = 0.0
        self.run_s: float | None = None
        """How long its code ran, by a clock that does not jump; None = it did not."""

    @property
    def final(self) -> bool:
        """Nothing more can happen to it here."""
        return self.state in FINAL

    def advance(self, event: Event) -> None:
        """Move on. Raises `IllegalTransition` and changes nothing when that step is not allowed."""
        # The table itself first: five steps of each input.
        self.state = TRANSITIONS.get((self.state, event)) or advance(self.state, event)

    def name_attempt(self, number: int) -> None:
        """Give the coming execution its id."""
        self.number = number
        self.attempt = f"{number}-{_chance.take()}"

    def speaks(self, now: float) -> bool:
        """Whether we may record a failure, nak or term: nobody else can have it yet."""
        if not self.stale and now - self.confirmed_at >= FENCE_S:
            self.stale = True
        return not self.stale

    def ack(self) -> None:
        """The queue may forget it: it is recorded, and who waits was told."""
        self.delivery.ack()
        self.advance(Event.ACKED)

    def hand_back(self, now: float, delay_s: float = 0.0) -> None:
        """Give it back to the queue, unless it is no longer ours to give."""
        if self.speaks(now):
            self.advance(Event.HANDED_BACK)
            self.delivery.nak(delay_s)
        else:
            self.advance(Event.ABANDONED)
