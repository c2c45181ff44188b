"""From samples to figures: percentiles over all rounds, the median rate, ratios. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.peers.works import Sample


def percentile(values: Sequence[float], part: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `part` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One cell of the table."""

    p50_ms: float | None = None
    p99_ms: float | None = None
    rate: float | None = None
    """Per second, the median of the rounds."""
    lowest: float = 0.0
    highest: float = 0.0
    done: int = 0
    wanted: int = 0
    cpu_ms: float = 0.0
    """Of all processes, per call."""
    skipped: str = ""

    @property
    def cut_short(self) -> bool:
        """Whether a time limit ended it."""
        return self.done < self.wanted


def figure(samples: Iterable[Sample]) -> Figure:
    """The figure of one engine's samples of one work. Without any measured one, the reason why."""
    everything = list(samples)
    measured = [sample for sample in everything if not sample.skipped and sample.done and sample.seconds]
    if not measured:
        reasons = [sample.skipped for sample in everything if sample.skipped]
        return Figure(skipped=reasons[0] if reasons else "not run")
    rates = [sample.done / sample.seconds for sample in measured]
    latencies = [took for sample in measured for took in sample.latencies_ms]
    done = sum(sample.done for sample in measured)
    return Figure(
        p50_ms=percentile(latencies, 0.5) if latencies else None,
        p99_ms=percentile(latencies, 0.99) if latencies else None,
        rate=statistics.median(rates),
        lowest=min(rates),
        highest=max(rates),
        done=done,
        wanted=sum(sample.wanted for sample in measured),
        cpu_ms=1000 * sum(sample.cpu_s for sample in measured) / done,
    )


def speed(of: Figure, against: Figure, *, latency: bool) -> float | None:
    """How many times as fast as the other: 2.0 is half the time per call, or twice the calls per second."""
    if latency:
        return against.p50_ms / of.p50_ms if of.p50_ms and against.p50_ms else None
    return of.rate / against.rate if of.rate and against.rate else None
