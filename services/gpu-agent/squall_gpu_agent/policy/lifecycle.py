"""A call at the agent: the states of one delivery from its lease to its end, as a table.

Owns which step may follow which, hence that nothing is acked before it is recorded and nothing goes back to the queue
before its failure is counted. Does no I/O and keeps no state: `advance` maps a state and an event to the next state.
"""

from __future__ import annotations

from enum import StrEnum, auto


class State(StrEnum):
    """Where one delivery is."""

    LEASED = auto()
    """Delivered to this agent; no user code of it has run here."""
    RUNNING = auto()
    """Handed to a runner."""
    STOPPING = auto()
    """The runner was told to stop it: cancelled, or over its time."""
    ENDED = auto()
    """The outcome is known here and nowhere else."""
    COUNTED = auto()
    """The failure is stored in ATTEMPTS."""
    RECORDED = auto()
    """A result is stored in RESULTS: ours or somebody else's."""
    REPLIED = auto()
    """Who waits has been told."""
    ACKED = auto()
    """Final: the queue forgets it."""
    RETURNED = auto()
    """Final: the queue gives it to somebody again."""
    ABANDONED = auto()
    """Final: this agent may no longer speak for it; the queue gives it to somebody again by itself."""


class Event(StrEnum):
    """What happens to a delivery."""

    STARTED = auto()
    STOP_ASKED = auto()
    SETTLED_UNSTARTED = auto()
    """It ends without an attempt: expired, undecodable, or its function cannot be imported."""
    ENDED = auto()
    COUNTED = auto()
    ALREADY_RECORDED = auto()
    """History shows a result."""
    RECORDED = auto()
    REPLIED = auto()
    ACKED = auto()
    HANDED_BACK = auto()
    ABANDONED = auto()


class IllegalTransition(Exception):
    """That event cannot happen in that state; nothing has changed."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{event} is not possible in state {state}")
        self.state, self.event = state, event


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.LEASED, Event.STARTED): State.RUNNING,
    (State.LEASED, Event.SETTLED_UNSTARTED): State.ENDED,
    (State.LEASED, Event.ALREADY_RECORDED): State.RECORDED,
    (State.LEASED, Event.HANDED_BACK): State.RETURNED,
    (State.LEASED, Event.ABANDONED): State.ABANDONED,
    (State.RUNNING, Event.STOP_ASKED): State.STOPPING,
    (State.RUNNING, Event.ENDED): State.ENDED,
    (State.STOPPING, Event.STOP_ASKED): State.STOPPING,
    (State.STOPPING, Event.ENDED): State.ENDED,
    (State.ENDED, Event.COUNTED): State.COUNTED,
    (State.ENDED, Event.ALREADY_RECORDED): State.RECORDED,
    (State.ENDED, Event.RECORDED): State.RECORDED,
    (State.ENDED, Event.ABANDONED): State.ABANDONED,
    (State.COUNTED, Event.HANDED_BACK): State.RETURNED,
    (State.COUNTED, Event.ABANDONED): State.ABANDONED,
    (State.RECORDED, Event.REPLIED): State.REPLIED,
    (State.REPLIED, Event.ACKED): State.ACKED,
}

FINAL = frozenset({State.ACKED, State.RETURNED, State.ABANDONED})


def advance(state: State, event: Event) -> State:
    """The state after `event`. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None
