"""Schedules: from what apps declare to calls at their times. Owns the bucket `schedules` and what lies in SCHED.

The next tick of each schedule lies on the bus as a message with a time; the server delivers it to one of the
schedulers. Whoever gets it (or finds that it is overdue) decides by `policy.ticks`, makes the call, writes down by
compare-and-set that the tick is decided, puts the next one on the bus, and only then acknowledges: a crash in between
repeats steps that change nothing the second time.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from squall.errors import SquallError
from squall.spec import ScheduleSpec
from squall_bus import Bus, BusError, Change, Delivery, KeyExists, WrongRevision
from squall_contracts import subjects
from squall_contracts.functions import APPS, SPECS, AppRecord, FunctionRecord
from squall_contracts.schedules import SCHEDULES, ScheduleRecord, Tick, generation_of, schedule_id
from squall_scheduler.facts import Facts
from squall_scheduler.policy.ticks import NEVER, Due, due
from squall_scheduler.scheduled_calls import ScheduledCalls
from squall_service.clock import Clock
from squall_service.telemetry import log

OVERDUE_S = 3.0
"""A tick that nobody has decided by then was lost on the bus, or its scheduler was: the leader decides it."""
LOOK_AGAIN_S = 20.0
"""At most so long after a clock was put right a tick that came too early is looked at again."""
RECENT = 20
FIRED_TTL_S = 3600


class Schedules:
    """What every scheduler does with ticks, and what the leader does besides."""

    def __init__(self, bus: Bus, clock: Clock, facts: Facts) -> None:
        self._bus = bus
        self._bucket = bus.kv(SCHEDULES)
        self._clock = clock
        self._facts = facts
        self._calls = ScheduledCalls(bus, clock, facts)
        self._known: dict[str, tuple[ScheduleRecord, int]] = {}
        """With their revisions, as the watch tells."""

    def on_schedule(self, change: Change) -> None:
        """A record was written."""
        self._known.pop(change.key, None)
        if change.value is not None:
            self._known[change.key] = (ScheduleRecord.decode(change.value), change.revision)

    # ------------------------------------------------------------------ ticks

    async def on_fire(self, delivery: Delivery) -> None:
        """A tick's time has come, by the server's clock."""
        tick = Tick.decode(delivery.data)
        found = await self._read(tick.schedule_id)
        if found is None or found[0].generation != tick.generation or tick.tick <= found[0].handled:
            delivery.ack()  # deleted, declared anew, or decided already
            return
        early_s = tick.tick - self._clock.now()
        if early_s > 0:
            delivery.nak(min(early_s, LOOK_AGAIN_S))  # our clock is behind the server's, or was put back
            return
        await self.advance(*found)
        delivery.ack()

    async def advance(self, record: ScheduleRecord, revision: int) -> None:
        """Decide on what is due. Loses against another scheduler that did so first."""
        if record.paused:
            return
        now = self._clock.now()
        decision = due(record.spec, record.since, record.handled, now)
        call = ""
        if decision.call is not None:
            function = await self._present(record)
            if function is None:
                return  # stopped, or declared without it: the leader removes the record
            call = await self._calls.make(record, decision.call, function)
        moved = _moved(record, decision, call, now)
        try:
            await self._bucket.update(record.schedule_id, moved.encode(), revision)
        except WrongRevision:
            return
        if decision.missed:
            log.warning("ticks_missed", schedule=record.schedule_id, app=record.app_name, ticks=len(decision.missed))
        await self._arm(moved)

    async def _present(self, record: ScheduleRecord) -> FunctionRecord | None:
        """The version that a tick runs: what the app says at this moment, not what we heard of it."""
        entry = await self._bus.kv(APPS).get(record.app_id, from_leader=True)
        app = None if entry is None else AppRecord.decode(entry.value)
        if app is None or app.state == "stopped":
            return None
        function = await self._version(app.functions.get(record.function, ""))
        if function is None or function.spec.schedule is None:
            return None
        return function if generation_of(function.spec.schedule) == record.generation else None

    async def _version(self, function_id: str) -> FunctionRecord | None:
        known = self._facts.declared.version(function_id)
        if known is not None or not function_id:
            return known
        entry = await self._bus.kv(SPECS).get(function_id)
        return None if entry is None else FunctionRecord.decode(entry.value)

    async def _read(self, schedule: str) -> tuple[ScheduleRecord, int] | None:
        entry = await self._bucket.get(schedule, from_leader=True)
        return None if entry is None else (ScheduleRecord.decode(entry.value), entry.revision)

    async def _arm(self, record: ScheduleRecord) -> None:
        """Put the next tick on the bus, in place of what lies there for this schedule."""
        if record.next_tick == NEVER or record.paused:
            return
        region, body = self._bus.topology.region, Tick(record.schedule_id, record.generation, record.next_tick)
        await self._bus.publish(
            subjects.schedule(region, record.schedule_id),
            body.encode(),
            headers={
                "Nats-Schedule": f"@at {_rfc3339(record.next_tick)}",
                "Nats-Schedule-Target": subjects.fire(region, record.schedule_id),
                "Nats-Schedule-TTL": f"{FIRED_TTL_S}s",
            },
        )

    # ------------------------------------------------------------------ the leader

    async def tick(self) -> None:
        """What is declared becomes records, what is not is removed, and what is overdue is decided."""
        declared = self._declared()
        for schedule, (app, function, spec) in declared.items():
            await self._guarded(schedule, self._ensure(schedule, app, function, spec))
        now = self._clock.now()
        for schedule, (record, revision) in list(self._known.items()):
            if schedule not in declared:
                await self._guarded(schedule, self._remove(record, revision))
            elif not record.paused and (record.next_tick == NEVER or now - record.next_tick > OVERDUE_S):
                await self._guarded(schedule, self.advance(record, revision))

    async def _guarded(self, schedule: str, work: object) -> None:
        try:
            await work  # type: ignore[misc]  # one of our own coroutines
        except SquallError as error:
            if isinstance(error, BusError) and not isinstance(error, WrongRevision | KeyExists):
                raise
            log.warning("schedule_not_moved", schedule=schedule, reason=error.message)

    def _declared(self) -> dict[str, tuple[AppRecord, str, ScheduleSpec]]:
        found = {}
        for app in self._facts.declared.apps():
            for name, function_id in app.functions.items():
                function = self._facts.declared.version(function_id)
                if function is not None and function.spec.schedule is not None:
                    found[schedule_id(app.app_id, name)] = (app, name, function.spec.schedule)
        return found

    async def _ensure(self, schedule: str, app: AppRecord, function: str, spec: ScheduleSpec) -> None:
        known, generation = self._known.get(schedule), generation_of(spec)
        if known is not None and known[0].generation == generation:
            return
        now = self._clock.now()
        record = ScheduleRecord(
            schedule_id=schedule,
            app_id=app.app_id,
            app_name=app.name,
            workspace=app.workspace,
            environment=app.environment,
            function=function,
            spec=spec,
            generation=generation,
            since=now,
            handled=now,
            next_tick=due(spec, now, now, now).next_tick,
        )
        revision = await self._bucket.update(schedule, record.encode(), known[1] if known else 0)
        self._known[schedule] = (record, revision)
        await self._arm(record)
        log.info("schedule_made", schedule=schedule, app=app.name, function=function, next_tick=record.next_tick)

    async def _remove(self, record: ScheduleRecord, revision: int) -> None:
        await self._bucket.delete(record.schedule_id, revision)
        region = self._bus.topology.region
        await self._bus.purge(subjects.schedules_stream(region), subjects.schedule(region, record.schedule_id))
        self._known.pop(record.schedule_id, None)
        log.info("schedule_removed", schedule=record.schedule_id, app=record.app_name)


def _moved(record: ScheduleRecord, decision: Due, call: str, now: float) -> ScheduleRecord:
    lines = [[tick, now, ""] for tick in decision.missed[-RECENT:]]
    lines += [[decision.call, now, call]] if decision.call is not None else []
    return replace(
        record,
        handled=decision.handled,
        next_tick=decision.next_tick,
        called=record.called + (decision.call is not None),
        missed=record.missed + len(decision.missed),
        recent=[*reversed(lines), *record.recent][:RECENT],
    )


def _rfc3339(moment: float) -> str:
    """Rounded up: a tick that comes a microsecond early would have to wait for another round."""
    return datetime.fromtimestamp(moment + 0.001, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
