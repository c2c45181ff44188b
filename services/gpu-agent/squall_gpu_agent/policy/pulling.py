"""Pulling: how many calls an agent asks for, and of which shard. Pure.

A pool's calls lie on several shards, each with its own consumer, and an open request may be answered at any time.
Asking every shard for all free slots would bring shards x slots calls; asking one shard alone would leave a call on
another one waiting. So: while nothing is known every shard has at least one request open; while some shards are known
to have a backlog the free slots are shared among those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PREFETCH = 512
"""Per pool; more would only mean more to hand back."""
KEEP_FACTOR = 4
"""Times the prefetch that may wait here once it has been delivered: the prefetch shrinks while requests are open (a run
takes longer, results wait for the disk). A map on two busy cores handed back every third input without it."""
LINE_S = 0.005
"""Work that may wait in line inside a container with one slot, where it cannot go to another one at once."""
MAX_LINE = 32
"""So many no-ops that agent and runner need not wake each other for every one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a pool can take now."""

    free_slots: int
    prefetch: int
    """Calls that may wait here on top, see `prefetch_limit`."""
    waiting: int
    """Calls that wait here already."""

    @property
    def capacity(self) -> int:
        """Further calls that are welcome."""
        return max(0, self.free_slots + self.prefetch - self.waiting)

    def worth_asking(self, asked: int) -> bool:
        """Whether a request is due, with `asked` open already. Half of the prefetch may be used up first: one request
        for many calls costs as much as one for each."""
        return self.waiting + asked <= self.free_slots + self.prefetch // 2


def prefetch_limit(slots: int, mean_run_s: float | None, horizon_s: float) -> int:
    """Calls worth at most `horizon_s` of measured work for each slot; none before there is a measurement."""
    if mean_run_s is None or horizon_s <= 0 or mean_run_s > horizon_s:
        return 0
    return min(MAX_PREFETCH, int(slots * horizon_s / max(mean_run_s, 1e-6)))


def line_limit(mean_run_s: float | None) -> int:
    """Calls that may wait in line inside a container; none before there is a measurement."""
    if mean_run_s is None:
        return 0
    return min(MAX_LINE, int(LINE_S / max(mean_run_s, 1e-6)))


def worth_keeping(demand: Demand, limit: int) -> bool:
    """Whether a call that was delivered, and for which no slot is free, waits here. `limit`: the present
    `prefetch_limit`. Handing back costs the queue a redelivery and the next agent a look at the history, far more than
    a wait behind a few short runs; behind long ones (no prefetch) another agent may be free."""
    return demand.capacity > 0 or demand.waiting < KEEP_FACTOR * limit


def shares(capacity: int, backlogs: Sequence[int], *, turn: int, probe: bool) -> list[int]:
    """Requests to have open at each shard. `backlogs`: messages behind the last delivery of each shard, as told by it.

    `turn` rotates who gets the remainder. `probe` asks every shard: a backlog is only learnt from a delivery, so a
    shard that filled up meanwhile must be asked now and then.
    """
    shards = len(backlogs)
    if capacity <= 0 or not shards:
        return [0] * shards
    loaded = [shard for shard in range(shards) if backlogs[shard] > 0]
    if not loaded or (len(loaded) == shards and capacity >= shards):
        return [-(-capacity // shards)] * shards
    least = 1 if probe else 0
    wants = [least] * shards
    each, rest = divmod(capacity, len(loaded))
    for place in range(len(loaded)):
        shard = loaded[(turn + place) % len(loaded)]
        wants[shard] = max(least, each + (1 if place < rest else 0))
    return wants


def answerable(outstanding: Sequence[int], backlogs: Sequence[int]) -> int:
    """Of the open requests those that will be answered: while a shard has a backlog, the ones at idle shards will not
    be, and must not keep the loaded shard from being asked (a map lies on one shard)."""
    loaded = [number for number, behind in zip(outstanding, backlogs, strict=True) if behind > 0]
    return sum(loaded) if loaded else sum(outstanding)
