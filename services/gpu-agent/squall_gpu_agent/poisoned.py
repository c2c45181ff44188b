"""Poisoned deliveries: ones that are not calls. They must end, with a result if possible, and not stop the queue.

A call of a newer version is no poison: it waits for an agent that understands it, until its time is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from squall.errors import InvalidError, NotFoundError
from squall.ids import check_call_id
from squall.spec import Kind, Outcome
from squall_bus import BusError, Delivery
from squall_contracts import subjects
from squall_contracts.calls import DEADLINE_HEADER, CallRequested, CallResult
from squall_contracts.envelope import BadMessage, NewerMessage
from squall_contracts.retention import SPAWNED_S
from squall_gpu_agent import results
from squall_gpu_agent.leases import Leases
from squall_gpu_agent.policy.lifecycle import Event
from squall_gpu_agent.settlement import Settlement
from squall_service.clock import Clock
from squall_service.telemetry import log

ASIDE_S = 5.0
"""A call that this agent is too old for is offered again after so long: soon enough for a newer agent that has just
started, and no work to speak of when there is none for an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoned:
    """Settles what cannot be read."""

    clock: Clock
    leases: Leases
    settlement: Settlement
    workspace_of: Callable[[str], Awaitable[str]]
    """Of a pool; raises `NotFoundError`."""

    async def settle(self, delivery: Delivery, unread: BadMessage) -> None:
        """Record a failure if the subject says which input this was, then let the queue forget it."""
        reason = unread.message
        if isinstance(unread, NewerMessage) and self.clock.now() < _deadline(delivery):
            log.warning("newer_call_put_aside", subject=delivery.subject, reason=reason, fix=unread.hint)
            delivery.nak(ASIDE_S)
            return
        try:
            request = await self._request(delivery)
        except (ValueError, InvalidError, NotFoundError) as error:
            log.error("poisoned_call_dropped", subject=delivery.subject, reason=reason, error=error)
            delivery.term()
            return
        except BusError as error:
            log.warning("poisoned_call_waits", subject=delivery.subject, reason=error.message)
            return  # it comes again
        held = self.leases.take(request, delivery)
        try:
            held.advance(Event.SETTLED_UNSTARTED)
            await self.settlement.record(held, self._result(request, reason), SPAWNED_S, "finished", "poisoned")
        finally:
            self.leases.drop(held)

    async def _request(self, delivery: Delivery) -> CallRequested:
        """What the subject alone tells of the call."""
        place = subjects.parse_call(delivery.subject)
        return CallRequested(
            call=check_call_id(place.call),
            index=place.index,
            pool=place.owner,
            function="",
            workspace=await self.workspace_of(place.owner),
            app="",
            kind=Kind.SPAWN.value,
            accepted_at=delivery.published_at,
            deadline=0.0,
        )

    def _result(self, request: CallRequested, reason: str) -> CallResult:
        unreadable = InvalidError(f"the stored call is not readable: {reason}")
        error = {**results.platform_error(unreadable), "kind": "invalid_input"}
        return results.without_attempt(request, Outcome.FAILED, error, self.clock.now())


def _deadline(delivery: Delivery) -> float:
    try:
        return float(delivery.header(DEADLINE_HEADER) or 0.0)
    except ValueError:
        return 0.0
