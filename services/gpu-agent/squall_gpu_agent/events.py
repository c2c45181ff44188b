"""The readable history: one event for each thing that happens to an input, batched, never awaited. A hint, not law.

An input that succeeds at its first attempt within a quarter of a second has no events: its result says everything, and
an event would be a tenth of the agent's work on it.
"""

from __future__ import annotations

from squall_contracts import subjects
from squall_contracts.calls import CallEvent, CallRequested
from squall_gpu_agent.held import Held
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.outbox import Outbox
from squall_service.clock import Clock


class Events:
    """Publishes events of inputs."""

    def __init__(self, outbox: Outbox, identity: Identity, clock: Clock) -> None:
        self._outbox = outbox
        self._identity = identity
        self._clock = clock

    @property
    def node(self) -> str:
        """Where this happens."""
        return self._identity.node

    def tell(self, held: Held, event: str, detail: str = "") -> None:
        """Something happened to a held call."""
        container = held.container
        self.tell_of(
            held.request, event, detail, attempt=held.attempt, container=container.id if container is not None else ""
        )

    def tell_of(
        self, request: CallRequested, event: str, detail: str = "", *, attempt: str = "", container: str = ""
    ) -> None:
        """Something happened to an input."""
        message = CallEvent(
            call=request.call,
            index=request.index,
            event=event,
            at=self._clock.now(),
            attempt=attempt,
            node=self._identity.node,
            container=container,
            detail=detail,
        )
        subject = subjects.event(self._identity.region, request.workspace, request.call, request.index)
        self._outbox.put(subject, message)
