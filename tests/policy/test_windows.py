"""What is remembered of a pool: the peak of its need, and the rate of its work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from squall_autoscaler.policy.windows import GRAIN_S, Peak, Rate


def test_the_peak_is_kept_for_as_long_as_the_window_and_then_forgotten() -> None:
    peak = Peak(0.0)
    peak.record(5, 10.0)
    for second in range(11, 71):
        peak.record(0, float(second))
        assert peak.over(60.0, float(second)) == 5
    peak.record(0, 71.0)
    assert peak.over(60.0, 71.0) == 0


def test_a_window_that_was_not_seen_in_full_says_so() -> None:
    peak = Peak(100.0)
    assert not peak.covers(60.0, 159.0)
    assert peak.covers(60.0, 160.0)


def test_a_rate_needs_two_counts_with_some_time_between() -> None:
    rate = Rate()
    assert rate.per_s() is None
    rate.record(100, 0.0)
    rate.record(150, 0.2)
    assert rate.per_s() is None
    rate.record(300, 1.0)
    assert rate.per_s() == 200.0


def test_a_rate_is_that_of_the_last_two_seconds() -> None:
    rate = Rate()
    for second in range(10):
        rate.record(1000.0 * second, float(second))
    for second in range(10, 14):
        rate.record(9000.0 + 10 * (second - 9), float(second))
    assert rate.per_s() == 10.0


def test_a_counter_that_steps_back_or_vanishes_begins_again() -> None:
    rate = Rate()
    rate.record(100, 0.0)
    rate.record(5, 1.0)
    assert rate.per_s() is None
    rate.record(15, 2.0)
    assert rate.per_s() == 10.0
    rate.record(None, 3.0)
    assert rate.per_s() is None


steps = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 20)), min_size=1, max_size=60)


@given(steps, st.floats(1.0, 30.0))
def test_the_peak_is_the_largest_value_of_the_window_up_to_its_grain(
    recorded: list[tuple[float, int]], window_s: float
) -> None:
    peak, now, values = Peak(0.0), 0.0, []
    for pause_s, value in recorded:
        now += pause_s
        peak.record(value, now)
        values.append((now, value))
        found = peak.over(window_s, now)
        assert found in {v for _, v in values} | {0}
        assert found >= max((v for at, v in values if at >= now - window_s + GRAIN_S), default=0) or pause_s < GRAIN_S
        assert found <= max(v for at, v in values if at >= now - window_s)
