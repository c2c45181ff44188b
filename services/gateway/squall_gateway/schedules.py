"""Schedules as people see and stop them. The scheduler owns their records; here they are listed, paused and resumed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from squall.errors import ConflictError, NotFoundError
from squall.http_api.schedules import RanSchedule, ScheduleInfo
from squall.ids import check_name, new_call_id
from squall.spec import Encoding, Kind
from squall_bus import Bus, WrongRevision
from squall_contracts.schedules import SCHEDULES, ScheduleRecord
from squall_gateway.accept import Acceptor, Input
from squall_gateway.call_headers import CallHeaders, check_shard
from squall_gateway.call_spans import now_ns
from squall_gateway.policy.schedules import in_words
from squall_gateway.targets import Targets
from squall_service.clock import Clock

TRIES = 8
NO_ARGUMENTS = pickle.dumps(((), {}), 4)
_ID = re.compile(r"sc-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Schedules:
    """The schedules of all apps."""

    bus: Bus
    acceptor: Acceptor
    targets: Targets
    clock: Clock

    async def list(self, environment: str, workspace: str) -> list[ScheduleInfo]:
        """Those of an environment."""
        check_name(environment, "environment")
        records = [ScheduleRecord.decode(entry.value) for entry in await self.bus.kv(SCHEDULES).entries()]
        found = [r for r in records if r.workspace == workspace and r.environment == environment]
        return [info_of(record) for record in sorted(found, key=lambda r: (r.app_name, r.function))]

    async def pause(self, schedule: str, workspace: str) -> ScheduleInfo:
        """No ticks until it is resumed. A call that was made already runs."""
        return await self._change(schedule, workspace, lambda record: replace(record, paused=True))

    async def resume(self, schedule: str, workspace: str) -> ScheduleInfo:
        """Ticks from now on. What was due while it was paused was not missed: nobody wanted it."""

        def resumed(record: ScheduleRecord) -> ScheduleRecord:
            if not record.paused:
                return record
            return replace(record, paused=False, handled=max(record.handled, self.clock.now()), next_tick=0.0)

        return await self._change(schedule, workspace, resumed)

    async def run(self, schedule: str, workspace: str, wanted: str = "") -> RanSchedule:
        """A call of its function now, under the id that its client made: then a repeated request is the same call."""
        shards = self.bus.topology.shards
        record, _ = await self._read(schedule, workspace)
        received_ns = now_ns(self.clock)
        call = CallHeaders(
            call=check_shard(wanted, shards) if wanted else new_call_id(shards),
            app=record.app_id,
            function=record.function,
            function_id="",
            method="",
            parameters="",
            kind=Kind.SPAWN,
            encoding=Encoding.PICKLE.value,
            blob=None,
            parent=None,
            traceparent="",
            sent_ns=None,
        )
        target = await self.targets.of(call, workspace)
        await self.acceptor.accept(call, target, Input(0, NO_ARGUMENTS), reply_to=None, received_ns=received_ns)
        return RanSchedule(schedule, call.call)

    async def _change(
        self, schedule: str, workspace: str, change: Callable[[ScheduleRecord], ScheduleRecord]
    ) -> ScheduleInfo:
        for _ in range(TRIES):
            record, revision = await self._read(schedule, workspace)
            changed = change(record)
            try:
                await self.bus.kv(SCHEDULES).update(schedule, changed.encode(), revision)
            except WrongRevision:
                continue  # a tick came in between
            return info_of(changed)
        raise ConflictError(f"schedule {schedule} was changed by others at the same time, {TRIES} times in a row")

    async def _read(self, schedule: str, workspace: str) -> tuple[ScheduleRecord, int]:
        known = _ID.fullmatch(schedule) is not None
        entry = await self.bus.kv(SCHEDULES).get(schedule, from_leader=True) if known else None
        record = None if entry is None else ScheduleRecord.decode(entry.value)
        if entry is None or record is None or record.workspace != workspace:
            raise NotFoundError(
                f"there is no schedule {schedule!r}", fix="`squall schedule list` shows those that are."
            )
        return record, entry.revision


def info_of(record: ScheduleRecord) -> ScheduleInfo:
    """What is told about a schedule."""
    return ScheduleInfo(
        id=record.schedule_id,
        app=record.app_name,
        app_id=record.app_id,
        function=record.function,
        environment=record.environment,
        when=in_words(record.spec),
        next_tick=0.0 if record.paused else record.next_tick,
        paused=record.paused,
        called=record.called,
        missed=record.missed,
        recent=tuple({"tick": tick, "decided_at": at, "call": call} for tick, at, call in record.recent),
    )
