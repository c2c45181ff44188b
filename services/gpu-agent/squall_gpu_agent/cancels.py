"""Cancels: heard on the bus, carried out on what runs here, and remembered for what comes late.

The caller's gateway has recorded `cancelled` before it tells us; all we do is stop the code and let history decide.
"""

from __future__ import annotations

from collections.abc import Callable

from squall_bus import Bus, Message, Subscription
from squall_contracts import subjects
from squall_contracts.calls import CancelRequested
from squall_contracts.envelope import BadMessage
from squall_gpu_agent.identity import Identity
from squall_service.clock import Clock
from squall_service.telemetry import log

REMEMBER_S = 60.0
"""A call may be on its way to us while its cancel overtakes it; by then the purge has removed it from the queue."""
MAX_REMEMBERED = 100_000
NEVER = float("-inf")


class Cancels:
    """The cancels of the last minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at: dict[tuple[str, str, int | None], float] = {}

    def remember(self, pool: str, call: str, index: int | None) -> None:
        """This input, or every input of the call, was cancelled."""
        now = self._clock.monotonic()
        if len(self._at) >= MAX_REMEMBERED or any(at < now - REMEMBER_S for at in list(self._at.values())[:1]):
            self._at = {key: at for key, at in self._at.items() if at >= now - REMEMBER_S}
        self._at[pool, call, index] = now

    def recent(self, pool: str, call: str, index: int) -> bool:
        """Whether the input was cancelled within the last minute."""
        if not self._at:
            return False
        horizon = self._clock.monotonic() - REMEMBER_S
        # Not 0.0: the monotonic clock of a machine that has just started is near 0 itself.
        one, every = self._at.get((pool, call, index), NEVER), self._at.get((pool, call, None), NEVER)
        return max(one, every) > horizon


class CancelListener:
    """Hears cancels of every pool."""

    def __init__(self, bus: Bus, identity: Identity, cancels: Cancels, stop: Callable[[CancelRequested], None]) -> None:
        self._bus = bus
        self._identity = identity
        self._cancels = cancels
        self._stop = stop

    async def listen(self) -> Subscription:
        """From now on."""
        return await self._bus.subscribe(subjects.cancels(self._identity.region), self.on_cancel_requested)

    def on_cancel_requested(self, message: Message) -> None:
        """Stop what runs; what waits reads its history before it starts."""
        try:
            cancel = CancelRequested.decode(message.data)
        except BadMessage as error:
            log.warning("cancel_not_understood", subject=message.subject, reason=error.message)
            return
        self._cancels.remember(cancel.pool, cancel.call, cancel.index)
        self._stop(cancel)
