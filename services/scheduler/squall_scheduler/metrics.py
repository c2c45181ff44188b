"""Counts of the scheduler, read by the meter when somebody scrapes: counting itself is one addition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from opentelemetry.metrics import Meter, Observation

from squall_scheduler.facts import Facts


class Metrics:
    """What was done to claims and calls, and what is waiting."""

    def __init__(self) -> None:
        self.claims: Counter[str] = Counter()
        """Placed, drained, forgotten."""
        self.calls: Counter[str] = Counter()
        """Expired, requeued, taken_out (ended ones that came back into a queue)."""
        self.canaries: dict[str, float] = {}
        """Milliseconds to write and read each stream of the shards that are ours; -1 for one that failed."""
        self.lost_races: int = 0
        """Writes that another scheduler, or an agent, was faster with."""

    def observe(self, meter: Meter, facts: Facts) -> None:
        """Make everything visible."""
        meter.create_observable_counter(
            "squall_scheduler_claims", [lambda _: by("action", self.claims)], description="Changes of claims by kind."
        )
        meter.create_observable_counter(
            "squall_scheduler_calls_repaired",
            [lambda _: by("repair", self.calls)],
            description="Inputs that the reconciler expired, put back or took out.",
        )
        meter.create_observable_counter(
            "squall_scheduler_lost_races",
            [lambda _: one(self.lost_races)],
            description="Writes that lost a compare-and-set.",
        )
        meter.create_observable_gauge(
            "squall_scheduler_canary_ms",
            [lambda _: [Observation(took, {"stream": stream}) for stream, took in self.canaries.items()]],
            description="Time to write and read each stream, every 30 s; -1 = it failed.",
        )
        meter.create_observable_gauge(
            "squall_scheduler_containers", [lambda _: one(facts.containers())], description="Claims of all pools."
        )
        meter.create_observable_gauge(
            "squall_scheduler_missing",
            [lambda _: one(facts.missing())],
            description="Containers that are wanted and cannot be placed.",
        )
        meter.create_observable_gauge(
            "squall_scheduler_nodes", [lambda _: one(len(facts.machines))], description="Nodes that are known."
        )


def by(name: str, counts: Counter[str]) -> Iterator[Observation]:
    """One value for each key."""
    for key, number in counts.items():
        yield Observation(number, {name: key})


def one(value: int) -> Iterable[Observation]:
    """A single value without attributes."""
    return [Observation(value)]
