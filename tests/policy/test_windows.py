"""What is remembered of a pool: the peak of its need, and how fast it works."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from squall_autoscaler.policy.windows import GRAIN_S, Peak, Work


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


def worked(*counts: tuple[float, float], ready: int = 1) -> Work:
    """Work that has seen these (time, inputs ended so far)."""
    work = Work()
    for at, finished in counts:
        work.record(finished, ready, at)
    return work


def test_a_rate_needs_two_counts_with_some_time_between() -> None:
    assert worked().per_s() is None
    assert worked((0.0, 100), (0.2, 150)).per_s() is None
    assert worked((0.0, 100), (0.2, 150), (1.0, 300)).per_s() == 200.0


def test_a_rate_is_that_of_the_last_two_seconds() -> None:
    quick = [(float(second), 1000.0 * second) for second in range(10)]
    slow = [(float(second), 9000.0 + 10 * (second - 9)) for second in range(10, 14)]
    assert worked(*quick, *slow).per_s() == 10.0


def test_a_counter_that_steps_back_or_vanishes_begins_again() -> None:
    work = worked((0.0, 100), (1.0, 5))
    assert work.per_s() is None
    work.record(15, 1, 2.0)
    assert work.per_s() == 10.0
    work.record(None, 1, 3.0)
    assert work.per_s() is None


def test_each_number_of_containers_is_measured_anew() -> None:
    work = worked((0.0, 0), (1.0, 100))
    work.record(110, 4, 1.1)
    assert work.per_s() is None
    work.record(310, 4, 1.6)
    assert work.per_s() == 400.0


def test_the_gain_of_growth_is_a_share_of_what_it_should_have_brought() -> None:
    for rate, gain in ((400.0, 1.0), (250.0, 0.5), (100.0, 0.0)):
        work = worked((0.0, 0), (1.0, 100))
        assert work.gain() is None
        work.record(100, 4, 1.1)
        work.record(100 + rate, 4, 2.1)
        assert work.gain() == gain


def test_growth_is_compared_with_the_best_figure_of_fewer_containers() -> None:
    work = worked((0.0, 0), (1.0, 100))
    work.record(100, 2, 1.1)
    work.record(105, 2, 1.6)  # while the second was starting
    work.record(105, 4, 1.7)
    work.record(215, 4, 2.7)
    gain = work.gain()
    assert gain is not None
    assert round(gain, 2) == 0.03


def test_figures_of_other_numbers_are_forgotten_in_time() -> None:
    work = worked((0.0, 0), (1.0, 100))
    work.record(100, 4, 1.1)
    for second in range(2, 24):
        work.record(100 + second, 4, float(second))
    assert work.gain() is None


def test_figures_of_other_numbers_are_void_when_the_inputs_have_become_longer() -> None:
    work = worked((0.0, 0), (1.0, 100))
    work.record(100, 2, 1.1)
    work.record(300, 2, 2.1)
    assert work.gain() == 1.0
    for tenth in range(25):
        work.record(300 + tenth, 2, 2.2 + tenth / 10)
    assert work.gain() is None


def test_inputs_are_long_when_none_has_ended_while_it_was_measured() -> None:
    work = Work()
    assert not work.long()
    work.record(7, 1, 0.0)
    work.record(7, 1, 0.5)
    assert work.long()
    work.record(7, 4, 0.6)
    assert work.long()
    work.record(8, 4, 1.1)
    assert not work.long()


def test_times_without_backlog_are_not_measured() -> None:
    work = worked((0.0, 0), (1.0, 100))
    work.rest()
    work.record(100, 1, 60.0)
    work.record(200, 1, 61.0)
    assert work.per_s() == 100.0


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
