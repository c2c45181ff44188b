"""The work that every engine does, and what it yielded. Standard library only: also read in peers' venvs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

WORKERS = 2
"""Processes that run functions, of every engine."""
WORK_CPU_S = 0.005
PAYLOAD_BYTES = 1 << 20
DEPTHS = (1_000, 1_000_000)
"""Calls that are queued already, in the depth test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One line of the table."""

    name: str
    title: str
    count: int
    """Calls of one run; of those with `shared` each round makes its part, of the others all."""
    shared: bool
    latency: bool
    """Its figure is the time of one call; otherwise calls per second."""
    limit_s: float = 12.0
    """In one round; what is done by then is the figure, and the table says so."""
    few: int = 0
    """`count` for engines that need more than 50 ms a call."""

    def title_of(self, count: int) -> str:
        """With the number of calls."""
        return self.title.format(count=f"{count:,}")


WORKS = (
    Work(
        name="sequential",
        title="no-op, one after the other, {count} calls",
        count=5000,
        shared=True,
        latency=True,
        few=1000,
    ),
    Work(name="payload", title="1 MiB argument and result, {count} calls", count=100, shared=True, latency=True),
    Work(name="fan_out", title="fan-out of {count} no-ops", count=5000, shared=False, latency=False, few=1000),
    Work(name="fan_out_work", title="fan-out of {count} x 5 ms of CPU", count=1000, shared=False, latency=False),
    Work(name="enqueue_many", title="{count} enqueued as one list", count=10_000, shared=False, latency=False),
    Work(
        name="enqueue",
        title="{count} enqueued one after the other, not waited for",
        count=10_000,
        shared=False,
        latency=False,
        few=1000,
    ),
)
DEPTH = Work(name="depth", title="enqueue with {count} queued", count=500, shared=False, latency=True, limit_s=12.0)


def sized(works: tuple[Work, ...], *, rounds: int, slow: bool, at_most: int | None) -> tuple[Work, ...]:
    """The works of one round: `slow` engines make fewer calls, and `at_most` bounds every count (for a quick look)."""

    def size(work: Work) -> Work:
        count = work.few if slow and work.few else work.count
        count = min(count, at_most) if at_most else count
        return replace(work, count=max(1, count // rounds) if work.shared else count)

    return tuple(size(work) for work in works)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one engine did of one work in one round."""

    engine: str
    work: str
    round: int
    wanted: int = 0
    done: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of all processes of the engine and its caller."""
    latencies_ms: tuple[float, ...] = ()
    depth: int = 0
    skipped: str = ""
    """Why there is no figure."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What the engine says about itself: versions, durability."""

    def to_wire(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)


def sample_from_wire(body: Mapping[str, Any]) -> Sample:
    """The sample of a line of JSON."""
    return Sample(**{**body, "latencies_ms": tuple(body["latencies_ms"])})
