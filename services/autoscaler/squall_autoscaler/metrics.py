"""Counts of the autoscaler, read by the meter when somebody scrapes: counting itself is one addition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from opentelemetry.metrics import Meter, Observation

from squall_autoscaler.facts import Facts


class Metrics:
    """Decisions by their direction, and what is wanted."""

    def __init__(self) -> None:
        self.decisions: Counter[str] = Counter()
        """woken, up, down, zero."""
        self.lost_races = 0
        """Decisions that another autoscaler was faster with."""
        self.failed_samples = 0
        """Ticks at which a queue could not be asked."""

    def observe(self, meter: Meter, facts: Facts) -> None:
        """Make everything visible."""
        meter.create_observable_counter(
            "squall_autoscaler_decisions",
            [lambda _: by_direction(self.decisions)],
            description="Stored decisions by direction.",
        )
        meter.create_observable_counter(
            "squall_autoscaler_lost_races",
            [lambda _: one(self.lost_races)],
            description="Decisions that lost a compare-and-set.",
        )
        meter.create_observable_counter(
            "squall_autoscaler_failed_samples",
            [lambda _: one(self.failed_samples)],
            description="Ticks at which a queue could not be asked.",
        )
        meter.create_observable_gauge(
            "squall_autoscaler_desired", [lambda _: one(facts.desired())], description="Containers wanted in all pools."
        )

    def count(self, before: int, after: int, *, woken: bool) -> None:
        """One stored decision."""
        if woken:
            self.decisions["woken"] += 1
        elif after == 0:
            self.decisions["zero"] += 1
        else:
            self.decisions["up" if after > before else "down"] += 1


def by_direction(counts: Counter[str]) -> Iterator[Observation]:
    """One value for each key."""
    for key, number in counts.items():
        yield Observation(number, {"direction": key})


def one(value: int) -> Iterable[Observation]:
    """A single value without attributes."""
    return [Observation(value)]
