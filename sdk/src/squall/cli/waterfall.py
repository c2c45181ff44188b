"""A trace as text: the span tree as a waterfall, and the table of phases on the critical path. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from squall.http_api.traces import PhaseInfo, SpanInfo, Trace

BAR_WIDTH = 40
NAME_WIDTH = 30
OTHER = "other"


def waterfall(trace: Trace, bar_width: int = BAR_WIDTH) -> list[str]:
    """One line a span: its place in the tree, service, start and duration in ms, and a bar on a common time axis."""
    if not trace.spans:
        return ["no spans were recorded for this call"]
    begin = min(span.start_ns for span in trace.spans)
    end = max(span.end_ns for span in trace.spans)
    lines = [f"{'span':<{NAME_WIDTH}} {'service':<11} {'start':>9} {'ms':>9}"]
    for depth, span in in_order(trace.spans):
        name = _cut("  " * depth + span.name, NAME_WIDTH)
        bar = _bar(span.start_ns - begin, span.end_ns - begin, end - begin, bar_width)
        mark = f"  ✗ {span.error}" if span.error else _how(span)
        times = f"{_ms(span.start_ns - begin)} {_ms(span.end_ns - span.start_ns)}"
        lines.append(f"{name:<{NAME_WIDTH}} {_cut(span.service, 11):<11} {times} {bar}{mark}")
    return [line.rstrip() for line in lines]


def phase_table(phases: Sequence[PhaseInfo], wall_ns: int) -> list[str]:
    """Phases of the critical path in order, with their share of the wall time; `other` is what none of them covers."""
    wall = max(1, wall_ns)
    named = [phase for phase in phases if phase.name != OTHER]
    covered = sum(phase.duration_ns for phase in named)
    lines = [f"{'phase':<{NAME_WIDTH}} {'ms':>9}   share"]
    rows = [(phase.name, phase.duration_ns) for phase in named] + [(OTHER, max(0, wall_ns - covered))]
    lines += [f"{_cut(name, NAME_WIDTH):<{NAME_WIDTH}} {_ms(ns)} {100 * ns / wall:6.1f} %" for name, ns in rows]
    lines.append(f"{'total':<{NAME_WIDTH}} {_ms(wall_ns)}")
    return lines


def in_order(spans: Sequence[SpanInfo]) -> Iterator[tuple[int, SpanInfo]]:
    """Depth and span, parents before children, siblings by start. Spans whose parent is missing are roots."""
    known = {span.span_id for span in spans}
    children: dict[str, list[SpanInfo]] = {}
    for span in sorted(spans, key=lambda s: (s.start_ns, -s.end_ns)):
        parent = span.parent_id if span.parent_id in known and span.parent_id != span.span_id else ""
        children.setdefault(parent, []).append(span)
    stack = [(0, span) for span in reversed(children.get("", []))]
    seen = set()
    while stack:
        depth, span = stack.pop()
        if span.span_id in seen:
            continue
        seen.add(span.span_id)
        yield depth, span
        stack.extend((depth + 1, child) for child in reversed(children.get(span.span_id, [])))


def _how(span: SpanInfo) -> str:
    """How a container was started, and why so if there was a better way."""
    how, why = (str(span.attributes.get(name) or "") for name in ("how", "why"))
    return f"  {how}: {why}" if why else f"  {how}" if how else ""


def _bar(start_ns: int, end_ns: int, whole_ns: int, width: int) -> str:
    if whole_ns <= 0:
        return ""
    first = min(width - 1, start_ns * width // whole_ns)
    last = min(width, max(first + 1, -(-end_ns * width // whole_ns)))
    return " " * first + ("▏" if end_ns - start_ns < whole_ns // (width * 4) else "█" * (last - first))


def _ms(ns: int) -> str:
    return f"{ns / 1e6:9.2f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
