"""When a stream's lane waits for more records: a pure rule with the clock as an argument."""

from __future__ import annotations

from squall_bus.gathering import Gathering

MIN_BATCH = 12


def crowd(gathering: Gathering, until: float) -> None:
    """So many callers shortly before `until` that waiting is worth it."""
    for _ in range(Gathering.BUSY_CALLERS):
        gathering.arrived(until - Gathering.BUSY_S / 2)


def test_a_lone_writer_never_waits() -> None:
    gathering = Gathering(MIN_BATCH)
    for second in range(100):
        gathering.arrived(float(second))
        assert gathering.wait_until(1, float(second)) is None


def test_one_caller_with_many_records_never_waits() -> None:
    gathering = Gathering(MIN_BATCH)
    gathering.arrived(1.0)
    assert gathering.wait_until(40, 1.0) is None


def test_a_crowd_is_waited_for_until_there_are_enough() -> None:
    gathering = Gathering(MIN_BATCH)
    crowd(gathering, 1.0)
    first = gathering.wait_until(5, 1.0)
    assert first == 1.0 + Gathering.STEP_S
    second = gathering.wait_until(9, first)
    assert second == first + Gathering.STEP_S
    assert gathering.wait_until(Gathering.ENOUGH, first + Gathering.STEP_S / 2) is None


def test_nobody_is_held_longer_than_the_limit() -> None:
    gathering = Gathering(MIN_BATCH)
    crowd(gathering, 1.0)
    now, waiting = 1.0, 1
    while (until := gathering.wait_until(waiting, now)) is not None:
        now, waiting = until, waiting + 1
    assert 1.0 + Gathering.GATHER_S <= now <= 1.0 + Gathering.GATHER_S + Gathering.STEP_S


def test_a_step_without_a_record_ends_the_wait_and_forbids_the_next_for_a_while() -> None:
    gathering = Gathering(MIN_BATCH)
    crowd(gathering, 1.0)
    over = gathering.wait_until(MIN_BATCH - 1, 1.0)
    assert over is not None
    assert gathering.wait_until(MIN_BATCH - 1, over) is None
    crowd(gathering, over + 0.01)
    assert gathering.wait_until(3, over + 0.01) is None
    later = over + Gathering.PAUSE_S + 0.01
    crowd(gathering, later)
    assert gathering.wait_until(3, later) is not None


def test_a_batch_that_was_worth_the_wait_forbids_nothing() -> None:
    gathering = Gathering(MIN_BATCH)
    crowd(gathering, 1.0)
    over = gathering.wait_until(MIN_BATCH, 1.0)
    assert over is not None
    assert gathering.wait_until(MIN_BATCH, over) is None
    crowd(gathering, over + 0.01)
    assert gathering.wait_until(3, over + 0.01) is not None
