"""The state table of a call at the agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall_gpu_agent.policy.lifecycle import FINAL, TRANSITIONS, Event, IllegalTransition, State, advance

HAPPY = (Event.STARTED, Event.ENDED, Event.RECORDED, Event.REPLIED, Event.ACKED)
PATHS = {
    "it succeeds": (HAPPY, State.ACKED),
    "it fails and is retried": ((Event.STARTED, Event.ENDED, Event.COUNTED, Event.HANDED_BACK), State.RETURNED),
    "it is cancelled while it runs": (
        (Event.STARTED, Event.STOP_ASKED, Event.ENDED, Event.ALREADY_RECORDED, Event.REPLIED, Event.ACKED),
        State.ACKED,
    ),
    "it has a result already": ((Event.ALREADY_RECORDED, Event.REPLIED, Event.ACKED), State.ACKED),
    "it expires": ((Event.SETTLED_UNSTARTED, Event.RECORDED, Event.REPLIED, Event.ACKED), State.ACKED),
    "it is handed back unstarted": ((Event.HANDED_BACK,), State.RETURNED),
    "its lease is lost": ((Event.STARTED, Event.ENDED, Event.ABANDONED), State.ABANDONED),
    "its lease is lost after it was counted": (
        (Event.STARTED, Event.ENDED, Event.COUNTED, Event.ABANDONED),
        State.ABANDONED,
    ),
}


def walk(events: tuple[Event, ...]) -> State:
    state = State.LEASED
    for event in events:
        state = advance(state, event)
    return state


@pytest.mark.parametrize("path", PATHS)
def test_each_legal_life_reaches_its_end(path: str) -> None:
    events, end = PATHS[path]
    assert walk(events) is end


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_an_event_that_the_table_does_not_have_is_refused_by_name(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(IllegalTransition) as refused:
        advance(state, event)
    assert (refused.value.state, refused.value.event) == (state, event)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_nothing_happens_after_the_end(state: State) -> None:
    assert not [event for event in Event if (state, event) in TRANSITIONS]


def test_every_state_is_reached_and_every_other_state_can_be_left() -> None:
    assert {State.LEASED, *TRANSITIONS.values()} == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - FINAL


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_record_comes_before_reply_before_ack_whatever_happens(events: list[Event]) -> None:
    state, seen = State.LEASED, []
    for event in events:
        try:
            state = advance(state, event)
        except IllegalTransition:
            continue
        seen.append(event)
    if state is State.ACKED:
        assert seen[-2:] == [Event.REPLIED, Event.ACKED]
        assert seen[-3] in (Event.RECORDED, Event.ALREADY_RECORDED)
    if state is State.RETURNED and Event.STARTED in seen:
        assert seen[-2:] == [Event.COUNTED, Event.HANDED_BACK]
