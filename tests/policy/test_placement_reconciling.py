"""What becomes of an accepted input that has no result."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from squall_scheduler.open_calls import Open, OpenCalls
from squall_scheduler.policy.reconciling import PATIENCE_S, Expire, Leave, Requeue, judge
from squall_scheduler.state import Sighting

NOW = 1000.0
FUTURE, PAST, NEVER = NOW + 100, NOW - 1, float("inf")


def test_what_waits_in_its_queue_is_left_until_its_deadline() -> None:
    assert judge(Sighting(deadline=FUTURE, over_at=NEVER, queued=True), NOW) == Leave(
        until=FUTURE, reason="it waits or runs"
    )


def test_what_nobody_took_before_its_deadline_expires() -> None:
    assert isinstance(judge(Sighting(deadline=PAST, over_at=NEVER, queued=True), NOW), Expire)


def test_what_an_agent_may_be_running_does_not_expire() -> None:
    seen = Sighting(deadline=PAST, over_at=NEVER, queued=True, delivered=True, pool_alive=True)
    assert isinstance(judge(seen, NOW), Leave)


def test_what_was_taken_by_a_pool_that_has_no_container_any_more_expires() -> None:
    seen = Sighting(deadline=PAST, over_at=NEVER, queued=True, delivered=True, pool_alive=False)
    assert isinstance(judge(seen, NOW), Expire)


def test_what_is_in_no_queue_is_put_back_after_two_leases() -> None:
    fresh = Sighting(deadline=FUTURE, over_at=NEVER, queued=False, missing_since=NOW - 5)
    assert judge(fresh, NOW) == Leave(until=NOW - 5 + PATIENCE_S, reason="an agent may be about to record its result")
    lost = Sighting(deadline=FUTURE, over_at=NEVER, queued=False, missing_since=NOW - PATIENCE_S)
    assert isinstance(judge(lost, NOW), Requeue)


def test_what_is_in_no_queue_past_its_deadline_expires() -> None:
    lost = Sighting(deadline=PAST, over_at=NEVER, queued=False, missing_since=NOW - PATIENCE_S)
    assert isinstance(judge(lost, NOW), Expire)


sightings = st.builds(
    Sighting,
    deadline=st.floats(0, 2000),
    over_at=st.floats(0, 2000) | st.just(NEVER),
    queued=st.booleans(),
    delivered=st.booleans(),
    missing_since=st.floats(0, NOW),
    pool_alive=st.booleans(),
)


@given(sightings)
def test_nothing_ends_or_is_put_back_before_its_deadline_while_it_is_queued(seen: Sighting) -> None:
    if seen.queued and seen.deadline > NOW and seen.over_at > NOW:
        assert isinstance(judge(seen, NOW), Leave)


@given(sightings)
def test_nothing_waits_for_ever(seen: Sighting) -> None:
    verdict = judge(seen, NOW)
    if isinstance(verdict, Leave):
        assert NOW < verdict.until <= max(seen.deadline, NOW + PATIENCE_S)


# --- open calls ------------------------------------------------------------------------------------------------------


def test_the_oldest_inputs_of_a_pool_come_first_and_only_due_ones_are_given() -> None:
    calls = OpenCalls()
    for number in range(5):
        calls.add("po-1", f"fc-{number}.0", Open(number, 100.0 + number))
    assert calls.oldest("po-1", 2) == ["fc-0.0", "fc-1.0"]
    assert dict(calls.due(102.0, 10)) == {"po-1": ["fc-0.0", "fc-1.0", "fc-2.0"]}
    assert dict(calls.due(102.0, 1)) == {"po-1": ["fc-0.0"]}
    assert dict(calls.due(99.0, 10)) == {}


events = st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.integers(0, 9)), max_size=60)


@given(events)
def test_open_is_what_was_accepted_and_has_not_ended(happened: list[tuple[bool, str, int]]) -> None:
    calls, expected = OpenCalls(), set()
    for accepted, pool, number in happened:
        key = f"{pool}{number}.0"
        if accepted:
            calls.add(pool, key, Open(number, 0.0))
            expected.add(key)
        else:
            assert calls.close(key) == (key in expected)
            expected.discard(key)
            assert not calls.close(key)
    assert {key for pool in calls.pools() for key in calls.all(pool)} == expected
    assert len(calls) == len(expected)
