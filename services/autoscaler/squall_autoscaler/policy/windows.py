"""Windows: what a pool needed lately, and how fast it works. They only know the times they are given.

A window is made when the pool is first seen. What happened before is unknown, and unknown counts as "may have been
needed": a restarted autoscaler must not end containers that were busy a second ago.
"""

from __future__ import annotations

import math
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


class Work:
    """How fast the pool's containers end inputs, and whether more of them have made it faster.

    Measured anew whenever the number of ready containers changes: a mean over 1 and 4 containers says nothing of 4."""

    SPAN_S = 2.0
    """Long enough for a steady figure, short enough to notice soon that inputs have become longer."""
    MIN_S = 0.3
    """Less is luck."""
    KEPT_S = 20.0
    """How long the figures of other numbers of containers count."""
    CHANGED = 0.5
    """A rate that has fallen to this share with as many containers means other inputs: earlier figures are void."""

    LASTING_S = 2.0
    """Inputs that take as long are worth a container each, which takes a tenth of it. Nodes tell once a second."""
    REMEMBERED_S = 3600.0
    """How long that is known of a pool."""

    def __init__(self, lasting_at: float = -math.inf) -> None:
        """`lasting_at`: what `lasting_at` was when the pool was last known."""
        self.lasting_at = lasting_at
        """When inputs were last seen to be `lasting`."""
        self._still: tuple[float, float] | None = None
        """Since when something runs and nothing has ended, and how many had."""
        self._running = 0
        self._counts: deque[tuple[float, float]] = deque()
        self._ready = 0
        self._levels: dict[int, tuple[float, float]] = {}
        """By number of containers: when it was measured, and the best rate."""

    def record(self, finished: float | None, ready: int, now: float) -> None:
        """So many inputs have ended so far, with so many containers. None or a step back = begin again."""
        if ready != self._ready:
            self._ready = ready
            self._counts.clear()
        if finished is None or (self._counts and finished < self._counts[-1][1]):
            self._counts.clear()
        if finished is not None:
            self._counts.append((now, finished))
        while len(self._counts) > 2 and self._counts[1][0] <= now - self.SPAN_S:
            self._counts.popleft()
        self._levels = {n: level for n, level in self._levels.items() if now - level[0] <= self.KEPT_S}
        if (rate := self.per_s()) is not None:
            best = self._levels.get(ready, (now, 0.0))[1]
            if rate < best * self.CHANGED:
                self._levels.clear()
                best = 0.0
            # The best one: a figure taken while others were starting is too low.
            self._levels[ready] = (now, max(rate, best))

    def rest(self) -> None:
        """Nothing waits: what is ended now says how much there was to do, not how fast it is done."""
        self._counts.clear()

    def per_s(self) -> float | None:
        """Inputs per second with the present number of containers; None while it is not measured."""
        if len(self._counts) < 2:
            return None
        (began, before), (ended, after) = self._counts[0], self._counts[-1]
        return (after - before) / (ended - began) if ended - began >= self.MIN_S else None

    def watch(self, finished: float | None, running: int, now: float) -> None:
        """So many inputs run and so many have ended, whether or not others wait: how long do they take?"""
        before, self._running = self._running, running
        if finished is None or self._still is None or finished != self._still[1]:
            if finished is not None and self._still is not None and finished - self._still[1] > max(before, running):
                self.lasting_at = -math.inf  # more have ended than ran: most of them were short
            self._still = (now, finished) if finished is not None else None
        elif running == 0 or before == 0:
            self._still = (now, finished)
        elif now - self._still[0] >= self.LASTING_S:
            self.lasting_at = now

    def lasting(self, now: float) -> bool:
        """Whether the inputs of this pool took much longer than the start of a container, when that was last seen."""
        return now - self.lasting_at <= self.REMEMBERED_S

    def still_lasting(self, now: float) -> bool:
        """Whether what runs has lasted for the least span of a figure, in a pool whose inputs took long before: its
        containers need not stop growing for that to be known."""
        return (
            self.lasting(now) and self._running > 0 and self._still is not None and now - self._still[0] >= self.MIN_S
        )

    def long(self) -> bool:
        """Whether nothing has ended while it was measured, with this or any smaller number of containers."""
        rates = [rate for _, rate in self._levels.values()]
        return bool(rates) and max(rates) == 0

    def gain(self) -> float | None:
        """What growth has brought: 1 = twice the containers do twice the work, 0 = no more than before."""
        rate = self.per_s()
        smaller = [(best, number) for number, (_, best) in self._levels.items() if 0 < number < self._ready]
        if rate is None or not smaller:
            return None
        before, containers = max(smaller)
        return (rate - before) / (before * (self._ready / containers - 1)) if before else None


class History:
    """Everything that is remembered of one pool."""

    def __init__(self, now: float, lasting_at: float = -math.inf) -> None:
        """`lasting_at`: see `Work`."""
        self.needed = Peak(now)
        self.work = Work(lasting_at)
        self.woken_at = float("-inf")
        """The last arrival that woke the pool and was counted as need."""
        self.idle_until = now
        """When there was last nothing to do."""
