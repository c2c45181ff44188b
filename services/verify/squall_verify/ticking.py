"""Schedules of a run: paused so that it can end, and read in the end. The ticks that they should have had are computed
here once more, from what is declared alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from squall.client import Client
from squall.config import ServerAddress
from squall.errors import SquallError
from squall.http_api.routes import Route
from squall_bus import Bus
from squall_contracts.schedules import SCHEDULES, ScheduleRecord, call_of_tick
from squall_service.clock import SystemClock
from squall_verify.state import Scheduled
from squall_verify.waiting import NotInTime

PAUSE_S = 30.0
MOST = 100_000
DECIDED_S = 0.0005
_CLOCK = SystemClock()


def switch(address: ServerAddress, route: str) -> dict[str, float]:
    """Pause or resume every schedule of a workspace; when each was acknowledged."""
    client, until = Client(address, patient=True), _CLOCK.monotonic() + PAUSE_S
    try:
        while _CLOCK.monotonic() < until:
            with suppress(SquallError):
                found = client.json("GET", Route.SCHEDULES)["schedules"]
                return {each["id"]: _switched(client, route, each["id"]) for each in found}
            time.sleep(0.5)
    finally:
        client.close()
    raise NotInTime("schedules cannot be paused or resumed")


def pause(address: ServerAddress) -> dict[str, float]:
    """No more ticks."""
    return switch(address, Route.SCHEDULE_PAUSE)


def resume(address: ServerAddress) -> dict[str, float]:
    """Ticks from now on."""
    return switch(address, Route.SCHEDULE_RESUME)


def _switched(client: Client, route: str, schedule: str) -> float:
    client.json("POST", route.format(schedule=schedule))
    return _CLOCK.now()


async def schedules(bus: Bus, paused_at: Mapping[str, float]) -> tuple[Scheduled, ...]:
    """Every schedule's record, and the calls that its ticks must have made."""
    found = []
    for entry in await bus.kv(SCHEDULES).entries():
        record, shards = ScheduleRecord.decode(entry.value), bus.topology.shards
        pause = paused_at.get(record.schedule_id)
        known = [(tick, call_of_tick(record, tick, shards)) for tick in periods(record, pause or 0.0)]
        ticks = [each for each in known if each[0] <= record.handled + DECIDED_S]
        found.append(
            Scheduled(
                schedule=record.schedule_id,
                workspace=record.workspace,
                function=record.function,
                since=record.since,
                handled=record.handled,
                called=record.called,
                missed=record.missed,
                paused=record.paused,
                ticks=tuple(ticks),
                following=tuple(call for _, call in known[len(ticks) :]),
                paused_at=pause,
            )
        )
    return tuple(found)


def periods(record: ScheduleRecord, until: float = 0.0) -> Iterator[float]:
    """The ticks of a period of seconds, until the first one that was not decided on and that is after `until`."""
    for number in range(1, MOST):
        tick = round(record.since + record.spec.seconds * number, 3)
        yield tick
        if tick > max(record.handled + DECIDED_S, until):
            return
