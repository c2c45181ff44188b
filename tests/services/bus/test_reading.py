"""Reading streams: single records, many at once, ranges, following."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import Bus, NotFound, Record, Stored


async def fill(bus: Bus, count: int, stem: str = "log") -> None:
    await bus.publish_batch([Record(f"{stem}.{n}", str(n).encode(), {"n": str(n)}) for n in range(count)])


async def test_the_last_record_of_a_subject(bus: Bus) -> None:
    await bus.publish("log.a", b"old")
    await bus.publish("log.a", b"new", headers={"k": "v"})

    for from_leader in (False, True):
        stored = await bus.get_last("LOG", "log.a", from_leader=from_leader)
        assert stored is not None
        assert (stored.data, stored.seq, stored.headers["k"]) == (b"new", 2, "v")
        assert stored.stored_at > 1_700_000_000
        assert await bus.get_last("LOG", "log.b", from_leader=from_leader) is None


async def test_many_subjects_at_once(bus: Bus) -> None:
    await fill(bus, 700)

    found = await bus.get_many("LOG", [f"log.{n}" for n in range(0, 1400, 2)])

    assert set(found) == {f"log.{n}" for n in range(0, 700, 2)}
    assert found["log.8"].data == b"8"
    assert await bus.get_many("LOG", []) == {}


async def test_many_subjects_by_wildcard_beyond_the_servers_limit(bus: Bus) -> None:
    await fill(bus, 1500)
    await bus.publish("log.7", b"again")

    found = await bus.get_many("LOG", ["log.>"])

    assert len(found) == 1500
    assert found["log.7"].data == b"again"


async def test_a_range_is_read_in_order_over_many_pages(bus: Bus) -> None:
    await fill(bus, 1300)
    await fill(bus, 3, "plain")

    records = [stored async for stored in bus.read("LOG", "log.>", start_seq=200)]

    assert [stored.seq for stored in records] == list(range(200, 1301))
    assert [stored.pending for stored in records[-3:]] == [2, 1, 0]
    assert records[0].headers["n"] == "199"


async def test_a_filtered_range(bus: Bus) -> None:
    await bus.publish_batch([Record(f"log.{n % 3}.x", str(n).encode()) for n in range(30)])

    records = [stored async for stored in bus.read("LOG", "log.1.*")]

    assert [int(stored.data) for stored in records] == list(range(1, 30, 3))


async def test_an_empty_range_ends_at_once(bus: Bus) -> None:
    assert [stored async for stored in bus.read("LOG")] == []
    assert [stored async for stored in bus.read("LOG", headers_only=True)] == []
    await fill(bus, 3)
    assert [stored async for stored in bus.read("LOG", start_seq=4)] == []
    assert [stored async for stored in bus.read("LOG", "log.none")] == []


async def test_headers_alone(bus: Bus) -> None:
    await fill(bus, 600)

    records = [stored async for stored in bus.read("LOG", headers_only=True)]

    assert len(records) == 600
    assert {stored.data for stored in records} == {b""}
    assert records[5].headers["n"] == "5"


async def test_large_records_come_in_smaller_pages(bus: Bus) -> None:
    for number in range(12):
        await bus.publish("log.big", bytes([number]) * 900_000)

    records = [stored async for stored in bus.read("LOG")]
    assert [stored.data[0] for stored in records] == list(range(12))


async def test_following_gives_what_is_there_and_then_what_comes(bus: Bus) -> None:
    await fill(bus, 3)
    got: list[Stored] = []
    async with aclosing(bus.read("LOG", follow=True)) as records:  # type: ignore[type-var]
        async for stored in records:
            got.append(stored)
            if len(got) == 3:
                await fill(bus, 2)
            if len(got) == 5:
                break

    assert [stored.seq for stored in got] == [1, 2, 3, 4, 5]


async def test_following_ends_after_its_idle_time(bus: Bus) -> None:
    await fill(bus, 3)
    records = [stored async for stored in bus.read("LOG", follow=True, idle_timeout_s=0.2)]
    assert len(records) == 3


async def test_following_leaves_no_consumer_behind(bus: Bus) -> None:
    await fill(bus, 3)
    _ = [stored async for stored in bus.read("LOG", follow=True, idle_timeout_s=0.05)]

    async def none_left() -> bool:
        return await bus.list_consumers("LOG") == []

    await eventually(none_left)


async def test_a_slow_follower_gets_everything(bus: Bus) -> None:
    await fill(bus, 2000)
    got: list[int] = []
    async for stored in bus.read("LOG", follow=True, idle_timeout_s=0.5):
        got.append(stored.seq)
        if len(got) % 100 == 0:
            await asyncio.sleep(0.005)
    assert got == list(range(1, 2001))


@pytest.mark.slow
async def test_following_goes_on_without_gap_or_repeat_across_restarts(bus: Bus, server: NatsServer) -> None:
    got: list[int] = []

    async def follow() -> None:
        async for stored in bus.read("LOG", follow=True):
            got.append(stored.seq)  # noqa: PERF401  # it never ends

    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        for round_ in range(1, 4):
            await fill(bus, 100)
            await eventually(lambda: len(got) == round_ * 100)  # noqa: B023
            await server.restart()
        await fill(bus, 100)
        await eventually(lambda: len(got) == 400)
        following.cancel()

    assert got == list(range(1, 401))


async def test_purging_and_deleting(bus: Bus) -> None:
    await fill(bus, 5)

    assert await bus.purge("LOG", "log.1") == 1
    assert await bus.purge("LOG", "log.1") == 0
    assert await bus.delete_message("LOG", 1)
    assert not await bus.delete_message("LOG", 1)
    assert [stored.seq async for stored in bus.read("LOG")] == [3, 4, 5]


async def test_counts_of_a_stream(bus: Bus) -> None:
    await fill(bus, 5, "first")
    await bus.purge("FIRST", "first.0")

    info = await bus.stream_info("FIRST", "first.>")
    assert (info.messages, info.first_seq, info.last_seq) == (4, 2, 5)
    assert info.subjects == {f"first.{n}": 1 for n in range(1, 5)}
    assert info.bytes > 0

    async def caught_up() -> bool:
        return (await bus.stream_info("WORK")).sources["FIRST"].lag == 0

    await eventually(caught_up)


async def test_a_stream_that_does_not_exist(bus: Bus) -> None:
    with pytest.raises(NotFound):
        await bus.stream_info("NOPE")
    with pytest.raises(NotFound):
        await bus.purge("NOPE", ">")
    with pytest.raises(NotFound):
        async for _ in bus.read("NOPE", follow=True):
            pass
