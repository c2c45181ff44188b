"""History: what is already recorded about an input. Read before a start whenever somebody may have had it before us.

Reads RESULTS, ATTEMPTS and, for redeliveries, the last line of EVENTS; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from squall.ids import shard_of
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.calls import REQUEUED_HEADER, AttemptFailed, CallEvent, CallRequested
from squall_contracts.envelope import BadMessage
from squall_gpu_agent.held import Held
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.policy.retry import Totals
from squall_gpu_agent.watermarks import Watermarks

NEW_S = 1.0
"""A killed server is not back within this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is known about an input besides the delivery itself."""

    result: bytes | None = None
    """The recorded result."""
    totals: Totals = field(default_factory=Totals)
    attempts_seq: int = 0
    lines: tuple[str, ...] = ()
    """One line for each counted failure."""
    retry_at: float = 0.0
    """The delay of the last counted failure ends then."""
    lost_attempt: str = ""
    """An attempt that was started and about which nothing was heard since: its agent died with it."""
    lost_node: str = ""


NO_PAST = Past()


class History:
    """Reads what is recorded."""

    def __init__(self, bus: Bus, identity: Identity, watermarks: Watermarks) -> None:
        self._bus = bus
        self._identity = identity
        self._watermarks = watermarks
        self._clustered = any(spec.replicas > 1 for spec in bus.topology.streams)

    def needed(self, held: Held, now: float) -> bool:
        """False only for a first delivery, straight from the journal, of an input that was accepted after we connected:
        then nobody can have had it, and no cancel can have passed us by.

        In a cluster the server of the queue may have been killed, and its queue replayed, without a word to us: there
        only what was accepted a moment ago is new for certain."""
        if held.cancelled or held.delivery.num_delivered > 1:
            return True
        if held.delivery.header(REQUEUED_HEADER) is not None:  # put back by the reconciler: somebody may have had it
            return True
        if self._clustered and abs(now - held.request.accepted_at) > NEW_S:
            return True
        return not self._watermarks.passed(shard_of(held.request.call), held.delivery)

    async def read(self, held: Held) -> Past:
        """Everything that decides whether and how it may start. Raises `BusUnavailable`."""
        request = held.request
        if (result := await self.result(request)) is not None:
            return Past(result=result)
        stored = await self._bus.get_last(
            subjects.attempts_stream(self._identity.region, shard_of(request.call)),
            subjects.attempts(self._identity.region, request.workspace, request.call, request.index),
            from_leader=True,
        )
        counted = AttemptFailed.decode(stored.data) if stored is not None else None
        lost, node = await self._lost(held, counted) if held.delivery.num_delivered > 1 else ("", "")
        return Past(
            totals=Totals(user=counted.user_failures, infra=counted.infra_failures) if counted else Totals(),
            attempts_seq=stored.seq if stored is not None else 0,
            retry_at=counted.retry_at if counted else 0.0,
            lines=tuple(counted.history) if counted else (),
            lost_attempt=lost,
            lost_node=node,
        )

    async def result(self, request: CallRequested) -> bytes | None:
        """The recorded result, from the stream's leader: a replica may not know yet what was just acknowledged."""
        stored = await self._bus.get_last(
            subjects.results_stream(self._identity.region, shard_of(request.call)),
            subjects.result(self._identity.region, request.workspace, request.call, request.index),
            from_leader=True,
        )
        return None if stored is None else stored.data

    async def _lost(self, held: Held, counted: AttemptFailed | None) -> tuple[str, str]:
        """The attempt that started last, if it neither ended nor was counted; and its node.

        EVENTS is a hint: at worst a loss is not counted and the input runs once more than the cap says."""
        request = held.request
        stored = await self._bus.get_last(
            subjects.events_stream(self._identity.region, shard_of(request.call)),
            subjects.event(self._identity.region, request.workspace, request.call, request.index),
        )
        if stored is None:
            return "", ""
        try:
            event = CallEvent.decode(stored.data)
        except BadMessage:
            return "", ""
        unfinished = event.attempt and event.event in ("started", "abandoned")
        if not unfinished or (counted is not None and counted.attempt == event.attempt):
            return "", ""
        return event.attempt, event.node
