"""Open calls: the accepted inputs of one shard that have no result yet, as a fold of JOURNAL and RESULTS. No I/O.

Owns nothing that could not be read again. Holds what waits or runs, never what has ended: its size is the backlog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple


class Open(NamedTuple):
    """One accepted input. A tuple: there may be a million of them."""

    seq: int
    """In JOURNAL."""
    deadline: float
    """Unix seconds after which it must not start."""


class OpenCalls:
    """By pool, in the order of the journal. An input's key is `<call>.<index>`."""

    def __init__(self) -> None:
        self._pools: dict[str, dict[str, Open]] = {}

    def __len__(self) -> int:
        return sum(len(calls) for calls in self._pools.values())

    def add(self, pool: str, key: str, call: Open) -> None:
        """An input was accepted."""
        self._pools.setdefault(pool, {})[key] = call

    def close(self, key: str, pool: str = "") -> bool:
        """An input has a result. False if it was not open. `pool` says where to look first."""
        for name in (pool,) if pool in self._pools else tuple(self._pools):
            calls = self._pools[name]
            if key in calls:
                del calls[key]
                if not calls:
                    del self._pools[name]
                return True
        return False

    def pools(self) -> list[str]:
        """Pools that have open inputs."""
        return list(self._pools)

    def count(self, pool: str) -> int:
        return len(self._pools.get(pool, ()))

    def has(self, pool: str, key: str) -> bool:
        return key in self._pools.get(pool, ())

    def seq(self, pool: str, key: str) -> int:
        """Its place in the journal; 0 = it is not open any more."""
        call = self._pools.get(pool, {}).get(key)
        return call.seq if call is not None else 0

    def first_seq(self) -> int:
        """The lowest place in the journal of all; 0 without any."""
        return min((next(iter(calls.values())).seq for calls in self._pools.values()), default=0)

    def is_due(self, pool: str, key: str, now: float) -> bool:
        """Whether its deadline has passed."""
        call = self._pools.get(pool, {}).get(key)
        return call is not None and call.deadline <= now

    def oldest(self, pool: str, number: int) -> list[str]:
        """The keys that were accepted first: deliveries follow that order, so these are the delivered ones."""
        return list(islice(self._pools.get(pool, ()), number))

    def all(self, pool: str) -> Iterable[str]:
        return self._pools.get(pool, {}).keys()

    def due(self, now: float, limit: int) -> Iterator[tuple[str, list[str]]]:
        """By pool, the inputs whose deadline has passed, at most `limit` of each.

        All inputs of a pool have the same queue limit, so their deadlines are in order and the first one that is not
        due ends the search: with nothing due this looks at one input of each pool."""
        for pool, calls in self._pools.items():
            found: list[str] = []
            for key, call in calls.items():
                if call.deadline > now or len(found) == limit:
                    break
                found.append(key)
            if found:
                yield pool, found

    def next_deadline(self) -> float | None:
        """When the next input is due; None without any."""
        return min((next(iter(calls.values())).deadline for calls in self._pools.values()), default=None)
