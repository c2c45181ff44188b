"""Windows: what a pool needed lately, and how fast it works. They only know the times they are given.

A window is made when the pool is first seen. What happened before is unknown, and unknown counts as "may have been
needed": a restarted autoscaler must not end containers that were busy a second ago.
"""

from __future__ import annotations

from collections import deque

GRAIN_S = 0.2
"""Values closer together than this are one: the fast loop must not fill the memory."""


class Peak:
    """The largest value of the last seconds."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._values: deque[tuple[float, int]] = deque()
        """(until when it was seen, value), values falling."""

    def record(self, value: int, now: float) -> None:
        """The value holds now."""
        while self._values and self._values[-1][1] <= value:
            self._values.pop()
        if self._values and now - self._values[-1][0] < GRAIN_S:
            # Dropped values are smaller than the one before, which lasts as long up to the grain.
            return
        self._values.append((now, value))

    def over(self, window_s: float, now: float) -> int:
        """The largest value recorded in the last `window_s`."""
        while self._values and self._values[0][0] < now - window_s:
            self._values.popleft()
        return self._values[0][1] if self._values else 0

    def covers(self, window_s: float, now: float) -> bool:
        """Whether the whole of the last `window_s` was seen."""
        return now - self._since >= window_s


class Rate:
    """Inputs ended per second, from a counter that only grows (and starts again with its node)."""

    SPAN_S = 2.0
    """Long enough for a steady figure, short enough to notice within two ticks that inputs have become longer."""
    MIN_S = 0.5

    def __init__(self) -> None:
        self._counts: deque[tuple[float, float]] = deque()

    def record(self, finished: float | None, now: float) -> None:
        """The counter stands there now; None or a step back = begin again."""
        if finished is None or (self._counts and finished < self._counts[-1][1]):
            self._counts.clear()
        if finished is not None:
            self._counts.append((now, finished))
        while len(self._counts) > 2 and self._counts[1][0] <= now - self.SPAN_S:
            self._counts.popleft()

    def per_s(self) -> float | None:
        """None while too little is known."""
        if len(self._counts) < 2:
            return None
        (began, before), (ended, after) = self._counts[0], self._counts[-1]
        return (after - before) / (ended - began) if ended - began >= self.MIN_S else None


class History:
    """Everything that is remembered of one pool."""

    def __init__(self, now: float) -> None:
        self.needed = Peak(now)
        self.rate = Rate()
