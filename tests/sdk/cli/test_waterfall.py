"""A trace as text."""

from __future__ import annotations

from dataclasses import replace

from squall.cli.waterfall import phase_table, waterfall
from squall.http_api.traces import PhaseInfo, SpanInfo, Trace

MS = 1_000_000


def span(name: str, start: int, end: int, parent: str = "", error: str = "") -> SpanInfo:
    return SpanInfo("t", name, parent, name, "service", start * MS, end * MS, {}, error)


def trace(*spans: SpanInfo) -> Trace:
    return Trace("fc-1", "t", spans, (), 10 * MS)


def test_children_stand_below_their_parent_in_the_order_of_their_start() -> None:
    lines = waterfall(
        trace(span("b", 6, 8, "call"), span("c", 7, 8, "b"), span("call", 0, 10), span("a", 1, 5, "call"))
    )

    assert [line.split()[0] for line in lines[1:]] == ["call", "a", "b", "c"]
    assert [len(line) - len(line.lstrip()) for line in lines[1:]] == [0, 2, 2, 4]


def test_times_are_milliseconds_from_the_first_span() -> None:
    lines = waterfall(trace(span("call", 100, 110), span("a", 102, 105, "call")))

    assert lines[2].split()[2:4] == ["2.00", "3.00"]


def test_bars_share_one_axis() -> None:
    call, first, second = waterfall(
        trace(span("call", 0, 10), span("a", 0, 5, "call"), span("b", 5, 10, "call")), bar_width=10
    )[1:]

    assert call.endswith("█" * 10)
    assert first.endswith(" " + "█" * 5)
    assert second.endswith(" " * 6 + "█" * 5)


def test_a_span_whose_parent_is_missing_is_shown_all_the_same() -> None:
    lines = waterfall(trace(span("orphan", 0, 1, "gone")))

    assert lines[1].startswith("orphan")


def test_spans_that_name_each_other_as_parents_end() -> None:
    assert len(waterfall(trace(span("a", 0, 1, "b"), span("b", 0, 1, "a")))) <= 3


def test_a_failed_span_shows_why() -> None:
    assert waterfall(trace(span("call", 0, 1, error="ValueError: no")))[1].endswith("✗ ValueError: no")


def test_a_call_without_spans_says_so() -> None:
    assert waterfall(trace()) == ["no spans were recorded for this call"]


def test_what_no_phase_covers_is_other() -> None:
    lines = phase_table((PhaseInfo("journal.publish", 0, 6 * MS), PhaseInfo("user.code", 6 * MS, 2 * MS)), 10 * MS)

    assert [line.split() for line in lines[1:]] == [
        ["journal.publish", "6.00", "60.0", "%"],
        ["user.code", "2.00", "20.0", "%"],
        ["other", "2.00", "20.0", "%"],
        ["total", "10.00"],
    ]


def test_a_start_tells_how_and_why_so() -> None:
    why = "containers of gVisor cannot be forked"
    started = replace(span("container.start", 0, 1), attributes={"how": "fresh", "why": why})
    assert waterfall(trace(started))[1].endswith(f"█  fresh: {why}")
    forked = replace(span("container.start", 0, 1), attributes={"how": "fork", "why": ""})
    assert waterfall(trace(forked))[1].endswith("█  fork")
