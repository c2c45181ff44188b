"""How many calls an agent asks each shard for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from squall_gpu_agent.policy.pulling import (
    MAX_LINE,
    MAX_PREFETCH,
    Demand,
    answerable,
    line_limit,
    prefetch_limit,
    shares,
    worth_keeping,
)

backlogs = st.lists(st.integers(0, 5), min_size=1, max_size=16)


def test_one_free_slot_listens_on_every_shard_while_nothing_is_known() -> None:
    assert shares(1, [0, 0, 0, 0], turn=0, probe=False) == [1, 1, 1, 1]


def test_one_free_slot_asks_one_loaded_shard_in_turn() -> None:
    loaded = [9, 0, 9, 9]
    assert [shares(1, loaded, turn=turn, probe=False) for turn in range(3)] == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]


def test_a_probe_asks_every_shard_though_one_is_loaded() -> None:
    assert shares(1, [9, 0], turn=0, probe=True) == [1, 1]


def test_no_capacity_asks_for_nothing() -> None:
    assert shares(0, [9, 9], turn=0, probe=True) == [0, 0]


@given(st.integers(0, 100), backlogs, st.integers(0, 100), st.booleans())
def test_capacity_is_always_asked_for_and_exceeded_by_less_than_one_for_each_shard(
    capacity: int, behind: list[int], turn: int, probe: bool
) -> None:
    wants = shares(capacity, behind, turn=turn, probe=probe)
    assert len(wants) == len(behind)
    assert capacity <= sum(wants) < capacity + len(behind) or not capacity
    if any(behind) and not probe and capacity:
        assert any(want for want, waiting in zip(wants, behind, strict=True) if waiting)


def test_nothing_is_leased_ahead_before_anything_was_measured_or_when_one_call_takes_longer() -> None:
    assert prefetch_limit(4, None, 0.05) == 0
    assert prefetch_limit(4, 0.06, 0.05) == 0


def test_calls_worth_50_ms_are_leased_ahead_for_each_slot() -> None:
    assert prefetch_limit(4, 0.01, 0.05) == 20
    assert prefetch_limit(100, 0.0001, 0.05) == MAX_PREFETCH


def test_a_line_holds_5_ms_of_work_and_none_before_anything_was_measured() -> None:
    assert line_limit(None) == line_limit(0.006) == 0
    assert line_limit(0.002) == 2
    assert line_limit(0.0) == MAX_LINE


def test_a_request_is_due_when_half_of_the_prefetch_is_used_up() -> None:
    assert not Demand(free_slots=0, prefetch=10, waiting=4).worth_asking(2)
    assert Demand(free_slots=0, prefetch=10, waiting=4).worth_asking(1)
    assert Demand(free_slots=1, prefetch=0, waiting=0).worth_asking(0)


def test_requests_open_at_idle_shards_do_not_keep_the_loaded_one_from_being_asked() -> None:
    assert answerable([22, 22, 3, 22], [0, 0, 900, 0]) == 3
    assert answerable([1, 1, 1, 1], [0, 0, 0, 0]) == 4


def test_a_delivered_call_waits_behind_short_runs_and_is_handed_back_behind_long_ones() -> None:
    full = Demand(free_slots=0, prefetch=20, waiting=20)
    assert worth_keeping(full, limit=20)
    assert not worth_keeping(Demand(free_slots=0, prefetch=20, waiting=80), limit=20)
    assert not worth_keeping(Demand(free_slots=0, prefetch=0, waiting=0), limit=0)
