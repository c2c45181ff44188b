"""The autoscaler on a real bus: arrivals, queues, stats and deployments become stored decisions."""

from __future__ import annotations

import asyncio
import time

from tests.services.scheduler.world import World, a_bus
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall.ids import shard_of
from squall_autoscaler.handlers import Autoscaler
from squall_autoscaler.retiring import EMPTY_S
from squall_bus import Change, ConsumerSpec, Delivery
from squall_contracts import subjects
from squall_contracts.functions import APPS, SPECS, pool_key
from squall_contracts.nodes import CONTAINERS, ClaimState, ContainerClaim
from squall_contracts.scaling import DESIRED, VERDICTS, Desired, Verdict


async def wanted(world: World, pool: str, number: int) -> bool:
    return await world.desired_count(pool) == number


async def revision(world: World, pool: str) -> int:
    entry = await world.bus.kv(DESIRED).get(pool)
    return entry.revision if entry else 0


async def by_hand(world: World) -> Autoscaler:
    """An autoscaler that knows what is stored now, and whose ticks are ours."""
    autoscaler = Autoscaler(world.bus, world.clock)
    handlers = {
        SPECS: autoscaler.on_spec,
        APPS: autoscaler.on_app,
        CONTAINERS: autoscaler.on_claim,
        VERDICTS: autoscaler.on_verdict,
        DESIRED: autoscaler.on_desired,
    }
    for bucket, handler in handlers.items():
        for entry in await world.bus.kv(bucket).entries():
            handler(Change(entry.key, entry.value, entry.revision))
    return autoscaler


async def containers(world: World, pool: str, number: int, state: str = ClaimState.READY) -> list[ContainerClaim]:
    """The scheduler and a node have made these."""
    claims = []
    for ordinal in range(number):
        claim = ContainerClaim(
            pool=pool,
            ordinal=ordinal,
            container=f"co-{ordinal}",
            node="node-a",
            function_id="fu-1",
            app_id="ap-1",
            workspace="main",
            state=state,
            created_at=0.0,
            updated_at=0.0,
        )
        await world.bus.kv(CONTAINERS).put(f"{pool}.{ordinal}", claim.encode())
        claims.append(claim)
    return claims


# --- waking ----------------------------------------------------------------------------------------------------------


async def test_the_first_call_of_a_pool_at_zero_wants_one_container_at_once(world: World) -> None:
    async with world.autoscaler(tick_s=60):
        pool = await world.function()
        call = await world.call(pool)
        await eventually(lambda: wanted(world, pool, 1))
        desired = await world.desired(pool)
        assert desired is not None
        assert desired.reason in ("first call", "inputs wait", "1 input, 0 running")  # whichever looks first
        assert desired.cold_call in (call, "")
        assert desired.decision.startswith("de-")
        assert desired.started_ns <= desired.decided_at * 1e9


async def test_a_call_that_was_accepted_while_no_autoscaler_ran_is_found(world: World) -> None:
    pool = await world.function()
    await world.call(pool)
    async with world.autoscaler(tick_s=0.1):
        await eventually(lambda: wanted(world, pool, 1))


async def test_two_autoscalers_wake_a_pool_once(world: World) -> None:
    async with a_bus(world.server, "other") as bus, world.autoscaler(tick_s=60), World(bus, world.server).autoscaler():
        pool = await world.function()
        await asyncio.gather(*(world.call(pool) for _ in range(20)))
        await eventually(lambda: wanted(world, pool, 1))
        assert (await world.bus.stream_info(f"KV_{DESIRED}")).last_seq == 1


async def test_an_arrival_that_is_told_twice_decides_once(world: World) -> None:
    pool = await world.function()
    autoscaler = Autoscaler(world.bus, world.clock)
    for entry in await world.bus.kv(SPECS).entries():
        autoscaler.on_spec(Change(entry.key, entry.value, entry.revision))
    await autoscaler.do_wake(pool, "fc-1")
    first = await revision(world, pool)
    await autoscaler.do_wake(pool, "fc-1")
    assert await revision(world, pool) == first
    stale = Autoscaler(world.bus, world.clock)  # has not heard of the decision
    for entry in await world.bus.kv(SPECS).entries():
        stale.on_spec(Change(entry.key, entry.value, entry.revision))
    await stale.do_wake(pool, "fc-1")
    assert await revision(world, pool) == first
    assert stale.metrics.lost_races == 1


async def test_inputs_that_have_ended_and_came_back_wake_no_pool(world: World) -> None:
    pool = await world.function()
    for _ in range(5):
        call = await world.call(pool)
        await eventually(lambda call=call: world.queued(call))  # type: ignore[misc]
        await world.finish(pool, call, acknowledge=False)
    autoscaler = await by_hand(world)
    for _ in range(3):
        await autoscaler.tick()
    assert await world.desired_count(pool) == 0
    fresh = await world.call(pool)
    await eventually(lambda: world.queued(fresh))
    await autoscaler.tick()
    assert await world.desired_count(pool) == 1


async def test_a_pool_that_went_to_zero_is_woken_again(world: World) -> None:
    async with world.autoscaler(tick_s=60):
        pool = await world.function()
        for _ in range(3):
            call = await world.call(pool)
            await eventually(lambda: wanted(world, pool, 1))
            await world.finish(pool, call)
            entry = await world.bus.kv(DESIRED).get(pool)
            assert entry is not None
            zero = Desired(pool=pool, count=0, reason="test", decision="de-0", decided_at=0.0)
            await world.bus.kv(DESIRED).update(pool, zero.encode(), entry.revision)
            await eventually(lambda: wanted(world, pool, 0))


# --- following the load ----------------------------------------------------------------------------------------------


async def test_a_backlog_is_followed_to_its_end(world: World) -> None:
    async with world.scheduler(), world.autoscaler():
        await world.node(cpu=64, memory_mib=64000)
        pool = await world.function()
        await asyncio.gather(*(world.call(pool) for _ in range(30)))
        await eventually(lambda: enough(world, pool, 30), within_s=60)


async def test_a_pool_whose_calls_took_long_gets_many_containers_at_once_after_it_was_at_zero(world: World) -> None:
    world.clock = clock = FakeClock(time.time())
    pool = await world.function(scaledown_window_s=2)
    claims = await containers(world, pool, 1)
    await world.desire(pool, 1)
    first = await world.call(pool)
    await eventually(lambda: world.queued(first))
    autoscaler = await by_hand(world)
    for _ in range(5):
        autoscaler.facts.stats_seen(world.told("node-a", claims, running=1), clock.now())
        await autoscaler.tick()
        await clock.advance(1.0)
    await world.finish(pool, first)
    for _ in range(4):
        autoscaler.facts.stats_seen(world.told("node-a", claims, idle_since=clock.now()), clock.now())
        await autoscaler.tick()
        await clock.advance(1.0)
    assert await world.desired_count(pool) == 0
    autoscaler.on_claim(Change(f"{pool}.0", None, 0))
    await autoscaler.tick()

    calls = await asyncio.gather(*(world.call(pool) for _ in range(40)))
    await eventually(lambda: world.queued(calls[-1]))
    await autoscaler.tick()
    assert await world.desired_count(pool) == 16


async def test_a_pool_with_min_containers_gets_them_without_any_call(world: World) -> None:
    async with world.autoscaler(tick_s=60):
        await eventually(lambda: leader(world))
        pool = await world.function(min_containers=2)
        await eventually(lambda: wanted(world, pool, 2))


async def test_no_decision_goes_past_max_containers(world: World) -> None:
    async with world.autoscaler(tick_s=0.05):
        pool = await world.function(max_containers=2)
        calls = await asyncio.gather(*(world.call(pool) for _ in range(9)))
        await eventually(lambda: wanted(world, pool, 1))
        for call in calls:
            await eventually(lambda call=call: world.queued(call))
        await containers(world, pool, 1)
        await eventually(lambda: wanted(world, pool, 2))
        desired = await world.desired(pool)
        assert desired is not None
        assert desired.reason.endswith("max_containers 2")
        assert desired.inputs["inputs"] == 9


async def test_a_pool_whose_starts_fail_gets_no_further_containers(world: World) -> None:
    pool = await world.function()
    verdict = Verdict(pool=pool, at=0.0, missing=1, message="x", failures=2)
    await world.bus.kv(VERDICTS).put(pool, verdict.encode())
    calls = [await world.call(pool) for _ in range(9)]
    await eventually(lambda: world.queued(calls[-1]))
    await containers(world, pool, 1, ClaimState.STARTING)
    autoscaler = await by_hand(world)
    for _ in range(3):
        await autoscaler.tick()
    assert await world.desired_count(pool) == 1


async def test_nothing_is_taken_away_while_a_node_is_silent(world: World) -> None:
    world.clock = clock = FakeClock(time.time())
    pool = await world.function(scaledown_window_s=2)
    claims = await containers(world, pool, 1)
    await world.desire(pool, 1)
    autoscaler = await by_hand(world)
    for _ in range(10):
        await autoscaler.tick()
        await clock.advance(1.0)
    assert await world.desired_count(pool) == 1
    autoscaler.facts.stats_seen(world.told("node-a", claims, idle_since=1.0), clock.now())
    await autoscaler.tick()
    assert await world.desired_count(pool) == 0


async def test_a_new_leader_takes_over_when_the_old_one_stops(world: World) -> None:
    pool = await world.function()
    async with a_bus(world.server, "other") as bus, world.autoscaler() as first:
        await eventually(lambda: leader(world))
        old = await leader(world)
        async with World(bus, world.server).autoscaler(tick_s=0.1):
            await first.stop()
            await eventually(lambda: another(world, old))
            await asyncio.gather(*(world.call(pool) for _ in range(3)))
            await eventually(lambda: wanted(world, pool, 1))
            await containers(world, pool, 1)
            await eventually(lambda: wanted(world, pool, 3))


# --- versions and ends -----------------------------------------------------------------------------------------------


async def test_an_older_version_ends_what_it_has_and_then_goes(world: World) -> None:
    async with world.autoscaler(tick_s=0.05):
        old = await world.function(min_containers=1, scaledown_window_s=3600)
        call = await world.call(old)
        await eventually(lambda: world.queued(call))
        await eventually(lambda: wanted(world, old, 1))
        claims = await containers(world, old, 1)
        new = await world.function(version=2, min_containers=1)
        assert new != old
        await eventually(lambda: wanted(world, new, 1))
        assert await world.desired_count(old) == 1
        await world.finish(old, call)

        async def gone() -> bool:
            world.stats("node-a", claims, idle_since=1.0)
            return await wanted(world, old, 0)

        await eventually(gone)


async def test_what_is_left_of_a_stopped_app_is_removed_when_it_was_empty_for_a_minute(world: World) -> None:
    world.clock = clock = FakeClock(time.time())
    async with world.autoscaler():
        await eventually(lambda: leader(world))
        pool = await world.function()
        call = await world.call(pool)
        await eventually(lambda: wanted(world, pool, 1))
        await world.finish(pool, call)
        await world.point("ap-1", {}, state="stopped")

        async def removed() -> bool:
            await clock.advance(1.0)
            return await world.bus.kv(SPECS).get(pool_key(pool)) is None

        began = clock.now()
        await eventually(removed, within_s=20, every_s=0.02)
        assert clock.now() - began >= 60
        await eventually(lambda: no_consumers(world))
        assert await world.bus.kv(DESIRED).get(pool) is None


async def test_a_pool_is_not_removed_while_its_queue_holds_what_its_consumer_has_forgotten(world: World) -> None:
    world.clock = clock = FakeClock(time.time())
    async with world.autoscaler():
        await eventually(lambda: leader(world))
        pool = await world.function()
        call = await world.call(pool)
        await eventually(lambda: wanted(world, pool, 1))
        await forget(world, pool, call)
        await world.point("ap-1", {}, state="stopped")

        for _ in range(round(2 * EMPTY_S)):
            await clock.advance(1.0)
            await asyncio.sleep(0.02)

        assert await world.bus.kv(SPECS).get(pool_key(pool)) is not None
        assert not await no_consumers(world)


async def test_a_stopped_autoscaler_gives_its_lease_back(world: World) -> None:
    async with world.autoscaler() as running:
        await eventually(lambda: leader(world))
    assert running.drained
    assert await leader(world) == ""


async def forget(world: World, pool: str, call: str) -> None:
    """The pool's consumer has delivered the call for the last time: it stays, neither waiting nor leased."""
    stream = subjects.work_stream("local", shard_of(call))
    wanted_subject = subjects.calls_of_pool("local", shard_of(call), pool)
    spec = ConsumerSpec(name=pool, filter_subject=wanted_subject, ack_wait_s=0.2, max_deliver=1)
    await world.bus.ensure_consumer(stream, spec)
    taken: list[Delivery] = []
    async with await world.bus.pull(stream, pool, taken.append) as puller:
        puller.want(1)
        await eventually(lambda: bool(taken))

    async def forgotten() -> bool:
        consumer = await world.bus.consumer_info(stream, pool)
        return consumer is not None and (consumer.pending, consumer.ack_pending) == (0, 0)

    await eventually(forgotten)


async def leader(world: World) -> str:
    entry = await world.bus.kv("leases").get("autoscaler")
    return entry.value.decode() if entry else ""


async def another(world: World, old: str) -> bool:
    return await leader(world) not in ("", old)


async def enough(world: World, pool: str, number: int) -> bool:
    await world.all_ready(pool)
    return len(await world.claims(pool, ClaimState.READY)) == number


async def no_consumers(world: World) -> bool:
    streams = [subjects.work_stream("local", shard) for shard in range(world.bus.topology.shards)]
    return not any([await world.bus.list_consumers(stream) for stream in streams])
