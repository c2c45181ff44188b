"""The critical path: every moment of a call belongs to exactly one piece."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from squall_contracts.spans import CRITICAL_PHASES, FILLING_PHASES
from squall_gateway.policy.critical_path import OTHER, CriticalPath, Interval, critical_path

PHASES = ("a", "b", "c")
FILLERS = ("wait",)


def path(*spans: tuple[str, int, int], whole: tuple[int, int] | None = None) -> list[tuple[str, int, int]]:
    bounds = None if whole is None else Interval("call", *whole)
    found = critical_path([Interval(*span) for span in spans], PHASES, FILLERS, bounds)
    return [(piece.name, piece.start_ns, piece.end_ns) for piece in found.pieces]


def test_phases_follow_each_other_and_gaps_are_other() -> None:
    assert path(("a", 10, 20), ("b", 30, 40), whole=(0, 50)) == [
        (OTHER, 0, 10),
        ("a", 10, 20),
        (OTHER, 20, 30),
        ("b", 30, 40),
        (OTHER, 40, 50),
    ]


def test_where_phases_overlap_the_later_one_counts() -> None:
    assert path(("a", 0, 20), ("b", 10, 30)) == [("a", 0, 10), ("b", 10, 30)]


def test_a_phase_inside_another_splits_it() -> None:
    assert path(("a", 0, 30), ("b", 10, 20)) == [("a", 0, 10), ("b", 10, 20), ("a", 20, 30)]


def test_waiting_counts_only_where_nothing_else_does() -> None:
    assert path(("wait", 0, 30), ("a", 10, 20)) == [("wait", 0, 10), ("a", 10, 20), ("wait", 20, 30)]


def test_spans_that_are_no_phases_do_not_count() -> None:
    assert path(("attempt", 0, 30), whole=(0, 30)) == [(OTHER, 0, 30)]


def test_what_lies_outside_the_call_is_cut_off() -> None:
    assert path(("a", -5, 5), ("b", 8, 100), whole=(0, 10)) == [("a", 0, 5), (OTHER, 5, 8), ("b", 8, 10)]


def test_nothing_is_no_path() -> None:
    assert path() == []
    assert critical_path([], PHASES, FILLERS, None).wall_ns == 0


def test_the_names_that_count_are_those_of_the_contract() -> None:
    assert {"args.encode", "user.code", "result.decode"} <= CRITICAL_PHASES
    assert "attempt" in FILLING_PHASES
    assert not CRITICAL_PHASES & FILLING_PHASES


MOMENTS = st.integers(0, 100)
SPANS = st.lists(
    st.builds(
        lambda name, start, length: Interval(name, start, start + length),
        st.sampled_from([*PHASES, *FILLERS, "attempt"]),
        MOMENTS,
        st.integers(0, 40),
    ),
    max_size=12,
)
WHOLE = st.none() | st.builds(
    lambda start, length: Interval("call", start, start + length), MOMENTS, st.integers(1, 100)
)


def covering(name: str, piece: Interval, spans: list[Interval]) -> bool:
    return any(s.name == name and s.start_ns <= piece.start_ns and s.end_ns >= piece.end_ns for s in spans)


@given(SPANS, WHOLE)
def test_pieces_are_in_order_without_gap_or_overlap_and_fill_the_call(
    spans: list[Interval], whole: Interval | None
) -> None:
    found = critical_path(spans, PHASES, FILLERS, whole)

    assert all(before.end_ns == after.start_ns for before, after in pairwise(found.pieces))
    assert all(piece.end_ns > piece.start_ns for piece in found.pieces)
    assert sum(piece.end_ns - piece.start_ns for piece in found.pieces) == found.wall_ns
    if whole is not None:
        assert (found.pieces[0].start_ns, found.pieces[-1].end_ns) == (whole.start_ns, whole.end_ns)


@given(SPANS, WHOLE)
def test_no_piece_says_what_no_span_says(spans: list[Interval], whole: Interval | None) -> None:
    for piece in unjoined(critical_path(spans, PHASES, FILLERS, whole)):
        if piece.name == OTHER:
            assert not any(covering(name, piece, spans) for name in (*PHASES, *FILLERS))
        else:
            assert covering(piece.name, piece, spans)


@given(SPANS, WHOLE)
def test_a_filler_never_hides_a_phase(spans: list[Interval], whole: Interval | None) -> None:
    for piece in unjoined(critical_path(spans, PHASES, FILLERS, whole)):
        if piece.name in FILLERS:
            assert not any(covering(name, piece, spans) for name in PHASES)


def unjoined(found: CriticalPath) -> list[Interval]:
    """The pieces, cut into single moments: a piece may be made of several spans of one name."""
    return [
        Interval(piece.name, moment, moment + 1)
        for piece in found.pieces
        for moment in range(piece.start_ns, piece.end_ns)
    ]
