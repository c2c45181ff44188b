"""Leases: keeps the queue convinced that held calls are in good hands, and notices when it no longer can be.

Owns the in-progress acks (every 2 s, confirmed) and the detection of gaps: a paused process or a suspended machine
must treat what it held as lost, because the queue has given it to somebody else meanwhile.
"""

from __future__ import annotations

from squall_bus import Delivery
from squall_contracts.calls import CallRequested
from squall_gpu_agent.held import FENCE_S, Held
from squall_gpu_agent.tasks import Tasks
from squall_service.clock import Clock

TICK_S = 0.25
RENEW_S = 2.0
CONFIRM_TIMEOUT_S = 2.0
LATE_TICK_S = 1.0
"""A delivery handled so long after the last tick may have lain in our socket since then."""
CLOCK_GAP_S = 2.0
"""Wall clock and monotonic clock drifted apart between two ticks: the machine slept, and CLOCK_MONOTONIC with it."""


class Leases:
    """Everything that this agent holds."""

    def __init__(self, clock: Clock, tasks: Tasks) -> None:
        self._clock = clock
        self._tasks = tasks
        self._held: set[Held] = set()
        self._ticked_at = clock.monotonic()
        self._offset = clock.now() - self._ticked_at

    def __len__(self) -> int:
        return len(self._held)

    @property
    def held(self) -> frozenset[Held]:
        """A snapshot."""
        return frozenset(self._held)

    def take(self, request: CallRequested, delivery: Delivery) -> Held:
        """Hold a delivery. After a pause its age is unknown, so the lease counts from the last sign of life."""
        now, wall = self._clock.monotonic(), self._clock.now()
        gap = abs(wall - now - self._offset) > CLOCK_GAP_S
        late = gap or now - self._ticked_at > LATE_TICK_S
        held = Held(request, delivery, leased_at=self._ticked_at if late else now, now_ns=int(wall * 1e9))
        held.stale = gap
        self._held.add(held)
        return held

    def drop(self, held: Held) -> None:
        """It is over, or no longer ours."""
        self._held.discard(held)

    def tick(self) -> None:
        """Look for gaps, then renew what is due."""
        now, wall = self._clock.monotonic(), self._clock.now()
        gap = abs(wall - now - self._offset) > CLOCK_GAP_S
        self._ticked_at, self._offset = now, wall - now
        for held in self._held:
            if gap:
                held.stale = True
            if held.speaks(now) and now - held.renewed_at >= RENEW_S:
                held.renewed_at = now
                self._tasks.start(self._renew(held), "renew lease")

    async def _renew(self, held: Held) -> None:
        sent_at = self._clock.monotonic()
        if await held.delivery.in_progress(CONFIRM_TIMEOUT_S) and held.speaks(self._clock.monotonic()):
            # From when it was sent: the queue's own clock started at the latest when it read the message.
            held.confirmed_at = max(held.confirmed_at, sent_at)
        elif not held.stale:
            held.renewed_at = min(held.renewed_at, sent_at - RENEW_S)  # try again at the next tick


__all__ = ["FENCE_S", "Leases"]
