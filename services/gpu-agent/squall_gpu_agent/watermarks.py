"""Watermarks: where each journal ended when this agent's connection to the bus was made, or a moment later.

What stands behind a watermark was accepted while we were connected, so nobody can have run it before and no cancel can
have passed us by. By sequence numbers and not by times: clocks of gateways, agents and servers jump.
"""

from __future__ import annotations

from squall_bus import Bus, BusError, Delivery
from squall_contracts import subjects
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.tasks import Tasks
from squall_service.telemetry import log

SOURCE_HEADER = "Nats-Stream-Source"
"""Of a message that was sourced: name of the stream, and the number that it has there."""


class Watermarks:
    """Asks once for each connection and shard, when the first call comes; until the answer nothing counts as new."""

    def __init__(self, bus: Bus, identity: Identity, tasks: Tasks) -> None:
        self._bus = bus
        self._identity = identity
        self._tasks = tasks
        self._connection = 0.0
        self._marks: dict[int, int] = {}
        self._asking: set[int] = set()

    def passed(self, shard: int, delivery: Delivery) -> bool:
        """Whether the call was accepted since we connected, for certain."""
        if self._connection != self._bus.connected_at:
            self._connection = self._bus.connected_at
            self._marks, self._asking = {}, set()
        mark = self._marks.get(shard)
        if mark is None:
            if shard not in self._asking:
                self._asking.add(shard)
                self._tasks.start(self._ask(shard, self._connection), "end of a journal")
            return False
        return journal_seq_of(delivery) > mark

    async def _ask(self, shard: int, connection: float) -> None:
        try:
            info = await self._bus.stream_info(subjects.journal_stream(self._identity.region, shard))
        except BusError as error:
            log.warning("journal_not_readable", shard=shard, reason=error.message)
        else:
            if connection == self._bus.connected_at == self._connection:
                self._marks[shard] = info.last_seq
        finally:
            if connection == self._connection:
                self._asking.discard(shard)


def journal_seq_of(delivery: Delivery) -> int:
    """Which message of the journal a delivery is; 0 when it was put into the queue by somebody."""
    told = (delivery.header(SOURCE_HEADER) or "").split()
    return int(told[1]) if len(told) > 1 and told[1].isdigit() else 0
