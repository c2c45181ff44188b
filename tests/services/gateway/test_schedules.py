"""Schedules over HTTP: refused at the publish when they mean nothing; listed, paused, resumed, run now."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from tests.services.gateway.world import SHARDS, TinyAgent, World, a_function, error_of

from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall.spec import MethodSpec, ScheduleSpec, to_wire
from squall_contracts.functions import pool_id
from squall_contracts.schedules import SCHEDULES, ScheduleRecord, generation_of, schedule_id
from squall_gateway.auth import create_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SPEC = ScheduleSpec(cron="0 6 * * *", timezone="Europe/Berlin")


async def a_schedule(world: World, name: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """An app whose function has a schedule, and the record that a scheduler makes of it."""
    app = await world.publish(a_function(schedule=SPEC), name=name)
    schedule = schedule_id(app["app_id"], "double")
    record = ScheduleRecord(
        schedule_id=schedule,
        app_id=app["app_id"],
        app_name=name,
        workspace="main",
        environment="main",
        function="double",
        spec=SPEC,
        generation=generation_of(SPEC),
        since=1.0,
        handled=2.0,
        next_tick=3.0,
        recent=[[2.0, 2.1, "fc-1"], [1.0, 2.1, ""]],
        **fields,
    )
    await world.bus.kv(SCHEDULES).put(schedule, record.encode())
    return app, schedule


async def stored(world: World, schedule: str) -> ScheduleRecord:
    entry = await world.bus.kv(SCHEDULES).get(schedule)
    assert entry is not None
    return ScheduleRecord.decode(entry.value)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (a_function(schedule=ScheduleSpec(cron="61 * * * *")), "not a cron expression"),
        (a_function(schedule=ScheduleSpec(cron="* * * * * *")), "five fields"),
        (a_function(schedule=ScheduleSpec(cron="0 0 31 2 *")), "0 0 31 2"),
        (a_function(schedule=ScheduleSpec(cron="* * * * *", timezone="Mars/Base")), "no time zone"),
        (a_function(schedule=ScheduleSpec(cron="* * * * *", timezone="../etc/passwd")), "no time zone"),
        (a_function(schedule=ScheduleSpec()), "one second"),
        (a_function(schedule=ScheduleSpec(seconds=0.1)), "one second"),
        (a_function(schedule=ScheduleSpec(hours=-1)), "negative"),
        (a_function(schedule=ScheduleSpec(years=9000)), "100 years"),
        (a_function(schedule=SPEC, is_class=True), "classes and generators"),
        (a_function(schedule=SPEC, methods=(MethodSpec(is_generator=True),)), "classes and generators"),
    ],
)
async def test_a_schedule_without_ticks_is_refused_at_the_publish(world: World, function: Any, words: str) -> None:
    answer = await world.http.post(
        Route.APPS, json={"name": "bad", "mode": "deployed", "functions": [to_wire(function)]}
    )
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")
    assert words in error_of(answer)["message"]
    assert "'double'" in error_of(answer)["message"]


async def test_schedules_are_listed_in_words(world: World) -> None:
    _, schedule = await a_schedule(world, "listed")
    rows = (await world.http.get(Route.SCHEDULES)).json()["schedules"]
    [row] = [row for row in rows if row["id"] == schedule]
    assert (row["app"], row["function"], row["when"]) == ("listed", "double", "0 6 * * * (Europe/Berlin)")
    assert [line["call"] for line in row["recent"]] == ["fc-1", ""]
    assert (await world.http.get(Route.SCHEDULES, params={"environment": "test"})).json() == {"schedules": []}


async def test_a_schedule_is_paused_and_resumed_without_making_up_for_anything(world: World) -> None:
    _, schedule = await a_schedule(world, "paused")

    paused = await world.http.post(Route.SCHEDULE_PAUSE.format(schedule=schedule))
    assert (paused.json()["paused"], paused.json()["next_tick"]) == (True, 0.0)
    assert (await stored(world, schedule)).handled == 2.0
    resumed = await world.http.post(Route.SCHEDULE_RESUME.format(schedule=schedule))
    again = await world.http.post(Route.SCHEDULE_RESUME.format(schedule=schedule))

    assert (resumed.json()["paused"], again.status_code) == (False, 200)
    record = await stored(world, schedule)
    assert record.handled > 1_000_000, "what was due before now is not due any more"
    assert record.next_tick == 0.0, "the scheduler is to find the next one"


async def test_run_now_is_an_ordinary_call_without_arguments(world: World, agent: TinyAgent) -> None:
    app, schedule = await a_schedule(world, "run-now")
    before = await stored(world, schedule)

    ran = (await world.http.post(Route.SCHEDULE_RUN.format(schedule=schedule))).json()
    await agent.serve(pool_id(app["functions"]["double"]))
    result = await world.http.get(Route.CALL_RESULT.format(call=ran["call"]), params={"index": 0, "wait": 20})

    assert result.status_code == 200
    [request] = agent.seen
    assert (pickle.loads(request.payload), request.kind, request.call) == (((), {}), "spawn", ran["call"])
    assert await stored(world, schedule) == before


async def test_a_request_to_run_it_now_that_is_sent_twice_is_one_call(world: World, agent: TinyAgent) -> None:
    app, schedule = await a_schedule(world, "run-twice")
    call = new_call_id(SHARDS)

    for _ in range(2):
        ran = await world.http.post(Route.SCHEDULE_RUN.format(schedule=schedule), params={"call": call})
        assert (ran.status_code, ran.json()["call"]) == (200, call)

    await agent.serve(pool_id(app["functions"]["double"]))
    result = await world.http.get(Route.CALL_RESULT.format(call=call), params={"index": 0, "wait": 20})
    assert result.status_code == 200
    assert [request.call for request in agent.seen] == [call]
    nonsense = await world.http.post(Route.SCHEDULE_RUN.format(schedule=schedule), params={"call": "x"})
    assert (nonsense.status_code, error_of(nonsense)["code"]) == (400, "invalid")


async def test_a_schedule_of_somebody_else_is_like_none(world: World) -> None:
    _, schedule = await a_schedule(world, "private")
    token = await create_token(world.bus, "other", "workspace", "x", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)

    for route in (Route.SCHEDULE_PAUSE, Route.SCHEDULE_RESUME, Route.SCHEDULE_RUN):
        for client, name in ((stranger, schedule), (world.http, "sc-0"), (world.http, "*"), (world.http, "sc-0.x")):
            answer = await client.post(route.format(schedule=name))
            assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert (await stranger.get(Route.SCHEDULES)).json() == {"schedules": []}
