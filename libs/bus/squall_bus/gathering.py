"""When a lane waits for more records, so that they go out as one batch."""

from __future__ import annotations

from collections import deque


class Gathering:
    """Whether to wait for more records before the next write. Pure; the clock is given.

    Yes while callers come faster than `BUSY_CALLERS` in `BUSY_S`, until there are `ENOUGH`, for `GATHER_S` at most, and
    only as long as every step brings some: who waits for the very records that are held would wait for nothing.
    """

    BUSY_CALLERS = 16
    BUSY_S = 0.024
    ENOUGH = 64
    """78 us of the server's CPU each, against 350 singly; 128 take 67."""
    GATHER_S = 0.024
    STEP_S = 0.003
    PAUSE_S = 0.25
    """After waiting in vain: not enough callers for a batch, however fast they are."""

    def __init__(self, batch_from: int) -> None:
        self._batch_from = batch_from
        self._arrivals: deque[float] = deque(maxlen=self.BUSY_CALLERS)
        self._since: float | None = None
        self._step_ends = 0.0
        self._at_step = 0
        self._not_before = 0.0

    def arrived(self, now: float) -> None:
        """A caller came, with one record or many: those of one caller will not be more by waiting."""
        self._arrivals.append(now)

    def wait_until(self, waiting: int, now: float) -> float | None:
        """When to ask again; None = write now."""
        if self._since is None:
            if waiting >= self.ENOUGH or now < self._not_before or not self._busy(now):
                return None
            self._since = now
            return self._step(waiting, now)
        if waiting < self.ENOUGH and now < self._since + self.GATHER_S:
            if now < self._step_ends:
                return self._step_ends
            if waiting > self._at_step:
                return self._step(waiting, now)
        self._since = None
        if waiting < self._batch_from:
            self._not_before = now + self.PAUSE_S
        return None

    def _step(self, waiting: int, now: float) -> float:
        self._at_step, self._step_ends = waiting, now + self.STEP_S
        return self._step_ends

    def _busy(self, now: float) -> bool:
        return len(self._arrivals) == self.BUSY_CALLERS and now - self._arrivals[0] <= self.BUSY_S
