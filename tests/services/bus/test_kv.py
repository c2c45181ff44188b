"""Buckets: compare-and-set, TTL, prefixes, watches."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import Bus, Change, KeyExists, KeyWrite, NotFound, Watch, WrongRevision
from squall_bus.wire import BadMessage


async def test_put_get_delete(bus: Bus) -> None:
    kv = bus.kv("config")
    assert await kv.get("a.b") is None

    revision = await kv.put("a.b", b"1")
    entry = await kv.get("a.b")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("a.b", b"1", revision)
    assert entry.created_at > 1_700_000_000

    await kv.delete("a.b")
    assert await kv.get("a.b") is None


async def test_of_many_that_create_a_key_exactly_one_wins(bus: Bus) -> None:
    kv = bus.kv("config")

    outcomes = await asyncio.gather(*(kv.create("k", str(n).encode()) for n in range(32)), return_exceptions=True)

    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
    assert len(winners) == 1
    assert all(isinstance(o, KeyExists) for o in outcomes if not isinstance(o, int))
    entry = await kv.get("k")
    assert entry is not None
    assert entry.value == str(winners[0]).encode()


async def test_a_deleted_key_can_be_created_again(bus: Bus) -> None:
    kv = bus.kv("config")
    await kv.create("k", b"1")
    await kv.delete("k")

    await kv.create("k", b"2")
    with pytest.raises(KeyExists):
        await kv.create("k", b"3")


async def test_writes_that_are_made_together_are_all_made_or_none(bus: Bus) -> None:
    kv = bus.kv("state")
    first = await kv.create("a", b"1")

    revisions = await kv.write_together([KeyWrite("a", b"2", first), KeyWrite("b", b"2", 0, ttl_s=60)])
    for wrong in (KeyWrite("b", b"3", 0), KeyWrite("c", b"3", 7)):
        with pytest.raises(WrongRevision):
            await kv.write_together([KeyWrite("a", b"3", revisions[0]), wrong])
    assert [await kv.revision(key) for key in "abc"] == [(revisions[0], True), (revisions[1], True), (0, False)]

    [gone, _] = await kv.write_together([KeyWrite("a", b"", revisions[0], removes=True), KeyWrite("c", b"4", 0)])
    assert await kv.get("a") is None
    assert await kv.revision("a") == (gone, False)
    assert [entry.value for entry in await kv.entries()] == [b"2", b"4"]


async def test_a_put_with_the_same_id_is_made_once(bus: Bus) -> None:
    kv = bus.kv("state")
    await kv.put("k", b"1", msg_id="r1")
    await kv.put("k", b"2")
    await kv.put("k", b"1", msg_id="r1")

    entry = await kv.get("k")
    assert entry is not None
    assert entry.value == b"2"


async def test_an_update_needs_the_present_revision(bus: Bus) -> None:
    kv = bus.kv("config")
    first = await kv.create("k", b"1")
    second = await kv.update("k", b"2", first)

    with pytest.raises(WrongRevision):
        await kv.update("k", b"3", first)
    with pytest.raises(WrongRevision):
        await kv.delete("k", revision=first)
    await kv.delete("k", revision=second)


async def test_other_keys_do_not_disturb_a_revision(bus: Bus) -> None:
    kv = bus.kv("config")
    revision = await kv.create("a", b"1")
    await kv.put("b", b"1")
    await kv.update("a", b"2", revision)


@pytest.mark.slow
async def test_a_key_with_a_ttl_vanishes_and_can_be_created_again(bus: Bus) -> None:
    kv = bus.kv("config")
    await kv.create("lease", b"me", ttl_s=1)
    with pytest.raises(KeyExists):
        await kv.create("lease", b"you", ttl_s=1)

    async def taken() -> bool:
        try:
            await kv.create("lease", b"you", ttl_s=1)
        except KeyExists:
            return False
        return True

    await eventually(taken)


@pytest.mark.slow
async def test_an_update_with_a_ttl_prolongs_it(bus: Bus) -> None:
    kv = bus.kv("leases")
    revision = await kv.create("lease", b"me", ttl_s=1)
    for _ in range(6):
        await asyncio.sleep(0.3)  # 1.8 s in all
        revision = await kv.update("lease", b"me", revision, ttl_s=1)
    assert await kv.get("lease") is not None


@pytest.mark.slow
async def test_keys_of_a_bucket_with_a_ttl_vanish(bus: Bus) -> None:
    kv = bus.kv("beats")
    await kv.put("node", b"alive")

    async def gone() -> bool:
        return await kv.get("node") is None and await kv.entries() == []

    await eventually(gone)


async def test_entries_by_prefix(bus: Bus) -> None:
    kv = bus.kv("config")
    for key in ("a.1", "a.2", "ab.1", "b"):
        await kv.put(key, key.encode())
    await kv.delete("a.2")

    async def keys(prefix: str) -> set[str]:
        return {entry.key for entry in await kv.entries(prefix)}

    assert await keys("") == {"a.1", "ab.1", "b"}
    assert await keys("a.") == {"a.1"}
    assert await keys("a") == {"a.1", "ab.1"}
    assert await keys("c.") == set()


async def test_more_entries_than_the_server_gives_at_once(bus: Bus) -> None:
    kv = bus.kv("beats")
    await asyncio.gather(*(kv.put(f"k{n}", b"x") for n in range(1500)))
    assert len(await kv.entries()) == 1500


async def test_a_bucket_that_is_not_in_the_topology(bus: Bus) -> None:
    with pytest.raises(NotFound):
        bus.kv("nope")


@pytest.mark.parametrize("key", ["", "a b", "a..b", ".a", "a.", "a.*", ">", "ä"])
async def test_a_key_that_is_not_one_is_refused(bus: Bus, key: str) -> None:
    kv = bus.kv("config")
    with pytest.raises(BadMessage):
        await kv.put(key, b"")
    with pytest.raises(BadMessage):
        await kv.get(key)


# ---------------------------------------------------------------------- watching


async def until_synced(watch: Watch) -> list[Change]:
    changes = []
    while not (change := await anext(watch)).synced:
        changes.append(change)
    return changes


async def test_a_watch_gives_what_is_there_then_the_mark_then_each_change(bus: Bus) -> None:
    kv = bus.kv("config")
    await kv.put("a", b"1")
    await kv.put("gone", b"1")
    await kv.delete("gone")
    async with kv.watch() as watch:
        assert [(c.key, c.value) for c in await until_synced(watch)] == [("a", b"1")]

        revision = await kv.put("b", b"2")
        assert await anext(watch) == Change("b", b"2", revision)
        await kv.put("b", b"3")
        assert (await anext(watch)).value == b"3"
        await kv.delete("a")
        change = await anext(watch)
        assert (change.key, change.value) == ("a", None)


async def test_a_watch_of_an_empty_bucket_is_synced_at_once(bus: Bus) -> None:
    async with bus.kv("config").watch() as watch:
        assert await until_synced(watch) == []


async def test_a_watch_sees_only_its_prefix(bus: Bus) -> None:
    kv = bus.kv("config")
    for key in ("a.1", "ab.1", "b.1"):
        await kv.put(key, b"")
    async with kv.watch("a") as both, kv.watch("a.") as one:
        assert {change.key for change in await until_synced(both)} == {"a.1", "ab.1"}
        assert {change.key for change in await until_synced(one)} == {"a.1"}
        await kv.put("b.2", b"")
        await kv.put("a.2", b"")
        assert (await anext(both)).key == (await anext(one)).key == "a.2"


async def test_a_wait_that_times_out_loses_nothing(bus: Bus) -> None:
    kv = bus.kv("config")
    async with kv.watch() as watch:
        await until_synced(watch)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(watch)
        await kv.put("a", b"1")
        assert (await anext(watch)).key == "a"


async def test_a_closed_watch_leaves_no_consumer_behind(bus: Bus) -> None:
    async with bus.kv("config").watch() as watch:
        await until_synced(watch)

    async def none_left() -> bool:
        return await bus.list_consumers("KV_config") == []

    await eventually(none_left)


@pytest.mark.slow
async def test_a_watch_across_a_restart_gives_exactly_the_differences(bus: Bus, server: NatsServer) -> None:
    kv = bus.kv("config")
    for key in ("same", "changed", "deleted"):
        await kv.put(key, b"1")
    async with kv.watch() as watch:
        await until_synced(watch)
        await server.restart()
        await eventually(lambda: bus.connected)
        await kv.put("changed", b"2")
        await kv.put("new", b"1")
        await kv.delete("deleted")
        # The watch never gives this one, but its user may know it: from writes of his own.
        await kv.put("short-lived", b"1")
        await kv.delete("short-lived")

        seen: dict[str, bytes | None] = {}
        async with asyncio.timeout(5):
            while len(seen) < 4:
                change = await anext(watch)
                seen[change.key] = change.value
    assert seen == {"changed": b"2", "new": b"1", "deleted": None, "short-lived": None}


@pytest.mark.slow
async def test_a_watch_reports_keys_that_a_restart_wiped_from_memory(bus: Bus, server: NatsServer) -> None:
    kv = bus.kv("leases")
    await kv.put("a", b"1")
    async with kv.watch() as watch:
        await until_synced(watch)
        await server.restart()
        async with asyncio.timeout(10):
            change = await anext(watch)
            assert (change.key, change.value) == ("a", None)
            await kv.put("a", b"2")
            assert (await anext(watch)).value == b"2"


@pytest.mark.slow
async def test_a_compare_and_set_whose_ack_was_lost_does_not_conflict_with_itself(bus: Bus, server: NatsServer) -> None:
    kv = bus.kv("config")
    revision = await kv.create("k", b"0")
    for round_ in range(3):
        async with asyncio.TaskGroup() as tasks:
            updating = tasks.create_task(kv.update("k", str(round_).encode(), revision))
            await asyncio.sleep(0)
            await server.restart()
        revision = updating.result()
    entry = await kv.get("k")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", revision)
