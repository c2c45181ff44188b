"""The critical path of a call: its phases in order, without overlap, and what no phase covers. Pure.

Every instant between the first and the last moment of the call belongs to exactly one piece, so the pieces add up to
the wall time. Where phases overlap, the one that began last counts: it is the narrower one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

OTHER = "other"


@dataclass(frozen=True, slots=True)
class Interval:
    """A span, as far as time is concerned."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class CriticalPath:
    """The pieces, in order; together they are the wall time."""

    pieces: tuple[Interval, ...]

    @property
    def wall_ns(self) -> int:
        """From the first moment to the last."""
        return self.pieces[-1].end_ns - self.pieces[0].start_ns if self.pieces else 0


def critical_path(
    spans: Sequence[Interval], phases: Collection[str], fillers: Collection[str], whole: Interval | None
) -> CriticalPath:
    """`phases` are the names that count; `fillers` count only where no phase does. `whole`: the call itself; without it
    the call is as long as its phases."""
    main = [span for span in spans if span.name in phases]
    filling = [span for span in spans if span.name in fillers]
    bounds = whole or _bounds([*main, *filling])
    if bounds is None or bounds.end_ns <= bounds.start_ns:
        return CriticalPath(())
    cuts = _cuts([*main, *filling], bounds)
    pieces = [
        Interval(_owner(start, end, main) or _owner(start, end, filling) or OTHER, start, end)
        for start, end in pairwise(cuts)
    ]
    return CriticalPath(tuple(_joined(pieces)))


def _bounds(spans: Sequence[Interval]) -> Interval | None:
    if not spans:
        return None
    return Interval("", min(span.start_ns for span in spans), max(span.end_ns for span in spans))


def _cuts(spans: Iterable[Interval], bounds: Interval) -> list[int]:
    """Every moment at which something may change, in order."""
    moments = {bounds.start_ns, bounds.end_ns}
    for span in spans:
        moments |= {moment for moment in (span.start_ns, span.end_ns) if bounds.start_ns < moment < bounds.end_ns}
    return sorted(moments)


def _owner(start_ns: int, end_ns: int, spans: Iterable[Interval]) -> str:
    covering = [span for span in spans if span.start_ns <= start_ns and span.end_ns >= end_ns]
    if not covering:
        return ""
    return max(covering, key=lambda span: (span.start_ns, -span.end_ns)).name


def _joined(pieces: Iterable[Interval]) -> Iterable[Interval]:
    """Neighbours of the same name are one piece."""
    last: Interval | None = None
    for piece in pieces:
        if last is not None and last.name == piece.name:
            last = Interval(last.name, last.start_ns, piece.end_ns)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last
