"""Log lines: history, following, cursors, filters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from tests.services.gateway.world import SHARDS, World, a_function, error_of

from squall.http_api.traces import LogEntry
from squall.ids import new_call_id
from squall_contracts import subjects
from squall_contracts.functions import pool_id
from squall_contracts.logs import LogLines
from squall_gateway.directory import Directory
from squall_gateway.logs import LogQuery, Logs

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Writer:
    """The agent's side."""

    def __init__(self, world: World, app: dict[str, Any]) -> None:
        self.world = world
        self.app = app["app_id"]
        self.function = next(iter(app["functions"].values()))

    async def write(self, *lines: tuple[float, str, str], call: str = "-", container: str = "co-1") -> None:
        pool = pool_id(self.function)
        batch = LogLines(
            app=self.app,
            pool=pool,
            function=self.function,
            container=container,
            call="" if call == "-" else call,
            index=-1 if call == "-" else 0,
            lines=[list(line) for line in lines],
        )
        shard = subjects.shard_of_name(self.app, SHARDS)
        await self.world.bus.publish(subjects.log("local", shard, self.app, pool, call), batch.encode())

    async def read(self, **query: Any) -> list[dict[str, Any]]:
        answer = await self.world.http.get(f"/v1/apps/{self.app}/logs", params=query)
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines() if line]

    @asynccontextmanager
    async def follow(self, **query: Any) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        path = f"/v1/apps/{self.app}/logs"
        async with self.world.http.stream("GET", path, params={"follow": 1, **query}) as answer:
            yield (json.loads(line) async for line in answer.aiter_lines() if line)


async def writer(world: World) -> Writer:
    return Writer(world, await world.publish(a_function("speak")))


async def test_history_has_every_line_as_it_was_written(world: World) -> None:
    logs = await writer(world)
    await logs.write((1.0, "stdout", "50%\r100%\r\n"), (2.0, "stderr", "oh\n"))

    first, second = await logs.read()

    assert (first["text"], first["stream"], first["at"]) == ("50%\r100%\r\n", "stdout", 1.0)
    assert (second["text"], second["function"], second["container"]) == ("oh\n", "speak", "co-1")
    assert (second["call"], second["index"], second["app"]) == ("", -1, logs.app)


async def test_a_cursor_goes_on_in_the_middle_of_a_batch(world: World) -> None:
    logs = await writer(world)
    await logs.write(*[(float(n), "stdout", f"{n}\n") for n in range(5)])
    await logs.write((5.0, "stdout", "5\n"))
    everything = await logs.read()

    for position, entry in enumerate(everything):
        rest = await logs.read(cursor=entry["cursor"])
        assert [line["text"] for line in rest] == [f"{n}\n" for n in range(position + 1, 6)]


async def test_lines_are_filtered_by_call_stream_function_time_and_count(world: World) -> None:
    logs, call = await writer(world), new_call_id(SHARDS)
    await logs.write((1.0, "stdout", "start\n"))
    await logs.write((2.0, "stdout", "in\n"), (3.0, "stderr", "err\n"), call=call)

    async def texts(**query: Any) -> list[str]:
        return [line["text"] for line in await logs.read(**query)]

    assert await texts(call=call) == ["in\n", "err\n"]
    assert await texts(stream="stderr") == ["err\n"]
    assert await texts(since=2.0) == ["in\n", "err\n"]
    assert await texts(function="speak") == ["start\n", "in\n", "err\n"]
    assert await texts(function="other") == []
    assert await texts(tail=2) == ["in\n", "err\n"]
    assert await texts(tail=0) == []


async def test_a_followed_app_gives_history_and_then_what_comes(world: World) -> None:
    logs = await writer(world)
    await logs.write((1.0, "stdout", "old\n"))
    async with logs.follow() as lines, asyncio.timeout(10):
        assert (await anext(lines))["text"] == "old\n"
        await logs.write((2.0, "stdout", "new\n"))
        assert (await anext(lines))["text"] == "new\n"


async def test_following_from_the_end_leaves_history_out(world: World) -> None:
    logs = await writer(world)
    await logs.write((1.0, "stdout", "old\n"), (2.0, "stdout", "older\n"))
    async with logs.follow(tail=0) as lines, asyncio.timeout(10):
        await asyncio.sleep(0.3)  # the answer begins before its place in the stream is taken
        await logs.write((3.0, "stdout", "new\n"))
        assert (await anext(lines))["text"] == "new\n"
    async with logs.follow(tail=1) as lines, asyncio.timeout(10):
        assert (await anext(lines))["text"] == "new\n"


@pytest.mark.slow
async def test_a_followed_stream_ends_when_the_app_is_stopped_and_nothing_comes_any_more(world: World) -> None:
    logs = await writer(world)
    async with logs.follow() as lines, asyncio.timeout(15):
        await logs.write((1.0, "stdout", "last\n"))
        assert (await anext(lines))["text"] == "last\n"
        await world.http.post(f"/v1/apps/{logs.app}/stop")
        with pytest.raises(StopAsyncIteration):
            await anext(lines)


class Lagging(Logs):
    """Reads what is there, and hears of what comes too late."""

    async def _pump(self, query: LogQuery, found: asyncio.Queue[LogEntry]) -> None:
        await asyncio.Event().wait()


async def test_lines_that_were_stored_when_an_app_ended_are_given_however_late_they_come_by(world: World) -> None:
    logs = await writer(world)
    await logs.write((1.0, "stdout", "good bye\n"))
    query = LogQuery(app=logs.app, workspace="main")
    async with aclosing(Lagging(world.bus, Directory(world.bus)).follow(query, lambda: True)) as entries:
        assert [entry.text async for entry in entries] == ["good bye\n"]


async def test_bad_cursors_and_unknown_apps_are_refused(world: World) -> None:
    logs = await writer(world)
    bad = await world.http.get(f"/v1/apps/{logs.app}/logs", params={"cursor": "a.b"})
    unknown = await world.http.get("/v1/apps/ap-0123/logs")

    assert (bad.status_code, error_of(bad)["code"]) == (400, "invalid")
    assert unknown.status_code == 404
