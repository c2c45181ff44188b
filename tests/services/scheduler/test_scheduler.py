"""The scheduler on a real bus: decisions of the autoscaler become claims, and claims follow what nodes do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.services.scheduler.world import World, a_bus
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall_bus import Change
from squall_contracts import subjects
from squall_contracts.builds import BuildImage
from squall_contracts.functions import SPECS
from squall_contracts.nodes import CONTAINERS, NODES, ClaimState, ContainerClaim, NodeFact, claim_key
from squall_contracts.scaling import DESIRED
from squall_scheduler.handlers import Scheduler
from squall_scheduler.policy.claims import UNANSWERED_S
from squall_scheduler.state import PoolId


@pytest.fixture
def slow_world(world: World) -> tuple[World, FakeClock]:
    """A world whose clock is turned by hand, from the real time on."""
    clock = FakeClock(time.time())
    world.clock = clock
    return world, clock


async def live(world: World, pool: str) -> list[ContainerClaim]:
    return await world.claims(pool, ClaimState.PROPOSED, ClaimState.STARTING, ClaimState.READY)


# --- placing ---------------------------------------------------------------------------------------------------------


async def test_a_decision_becomes_claims(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 1)
        (claim,) = await eventually(lambda: world.claims(pool), within_s=60)
        assert (claim.state, claim.node, claim.ordinal) == (ClaimState.PROPOSED, "node-a", 0)
        assert claim.decision == "de-1"


async def test_a_decision_that_arrives_twice_makes_no_second_claim(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 2)
        await eventually(lambda: count(world, pool, 2))
        await world.desire(pool, 2)
        await world.desire(pool, 3)
        await eventually(lambda: count(world, pool, 3))
        assert [claim.ordinal for claim in await world.claims(pool)] == [0, 1, 2]


async def test_placement_begins_on_the_trace_where_the_decision_was_made(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 1)
        (claim,) = await eventually(lambda: world.claims(pool))
        desired = await world.desired(pool)
        assert desired is not None
        decide, place = claim.spans
        assert [decide[0], place[0]] == ["autoscaler.decide", "scheduler.place"]
        assert place[3] == int(desired.decided_at * 1e9)
        assert abs(place[3] + place[4] - claim.created_at * 1e9) < 1000


async def test_who_waits_for_a_node_is_told_and_served_when_one_comes(world: World) -> None:
    async with world.scheduler():
        pool = await world.function()
        await world.desire(pool, 1)
        verdict = await eventually(lambda: world.verdict(pool))
        assert verdict is not None
        assert verdict.message == "no node is alive"
        assert verdict.missing == 1
        await world.node()
        await eventually(lambda: world.claims(pool))
        await eventually(lambda: no_verdict(world, pool))


async def test_who_waits_for_room_is_told_and_served_when_a_container_ends(world: World) -> None:
    async with world.scheduler():
        await world.node(cpu=1.0)
        first = await world.function("first", cpu=1.0)
        second = await world.function("second", cpu=1.0)
        await world.desire(first, 1)
        (claim,) = await eventually(lambda: world.claims(first))
        await world.desire(second, 1)
        verdict = await eventually(lambda: world.verdict(second))
        assert verdict is not None
        assert verdict.message == "no node has room: node-a is full (needs 1 core, 0 cores free)"
        await world.desire(first, 0)
        await world.gone(claim)
        await eventually(lambda: world.claims(second))
        await eventually(lambda: no_verdict(world, second))


async def test_gpus_are_assigned_to_one_container_each(world: World) -> None:
    async with world.scheduler():
        await world.node(gpus=("H100", "H100"))
        pool = await world.function(gpus=("H100",))
        await world.desire(pool, 3)
        await eventually(lambda: count(world, pool, 2))
        verdict = await eventually(lambda: world.verdict(pool))
        assert verdict is not None
        assert verdict.message == "no node offers H100: node-a is full (needs 1 H100, 0 free)"
        assert sorted(gpu for claim in await world.claims(pool) for gpu in claim.gpus) == ["node-a-0", "node-a-1"]


async def test_a_pool_never_has_more_containers_than_it_may_whatever_is_desired(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function(max_containers=2)
        await world.desire(pool, 7)
        await eventually(lambda: count(world, pool, 2))
        await world.desire(pool, 8)
        assert [claim.ordinal for claim in await world.claims(pool)] == [0, 1]


async def test_two_schedulers_place_each_container_once_and_no_node_twice_over(world: World) -> None:
    async with a_bus(world.server, "other") as bus, world.scheduler(), World(bus, world.server).scheduler():
        for node in ("node-a", "node-b"):
            await world.node(node, cpu=4.0)
        pools = [await world.function(f"f{n}") for n in range(6)]
        for pool in pools:
            await world.desire(pool, 5)
        for pool in pools:
            await eventually(lambda pool=pool: count(world, pool, 5))  # type: ignore[misc]
        claims = [claim for pool in pools for claim in await world.claims(pool)]
        assert len(claims) == 30
        assert len({(claim.pool, claim.ordinal) for claim in claims}) == 30


# --- following -------------------------------------------------------------------------------------------------------


async def test_a_refused_container_is_placed_elsewhere(world: World) -> None:
    async with world.scheduler():
        await world.node("node-a")
        pool = await world.function()
        await world.desire(pool, 1)
        (claim,) = await eventually(lambda: world.claims(pool))
        await world.node("node-b")
        await world.move(claim, ClaimState.REFUSED, reason="no disk left")
        (again,) = await eventually(lambda: live(world, pool))
        assert again.node == "node-b"
        assert again.container != claim.container


async def test_a_refusal_of_the_only_node_is_told(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 1)
        (claim,) = await eventually(lambda: world.claims(pool))
        await world.move(claim, ClaimState.REFUSED, reason="no disk left")
        verdict = await eventually(lambda: world.verdict(pool))
        assert verdict is not None
        assert verdict.rejected == {"node-a": "refused: no disk left"}
        await eventually(lambda: live(world, pool))  # asked again after a pause


async def test_an_image_that_is_lost_is_asked_for_again(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 1)
        (claim,) = await eventually(lambda: live(world, pool))
        await world.move(claim, ClaimState.FAILED, reason="image im-1 is not on this machine", image_lost=True)
        stream = subjects.builds_stream("local")

        async def asked() -> list[BuildImage]:
            return [BuildImage.decode(stored.data) async for stored in world.bus.read(stream, "builds.local.>")]

        (command,) = await eventually(asked)
        assert (command.image, command.lost, command.workspace) == (command.spec.id, True, claim.workspace)


async def test_a_failing_start_backs_off_and_says_when_it_tries_again(slow_world: tuple[World, FakeClock]) -> None:
    world, clock = slow_world
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 3)
        await eventually(lambda: count(world, pool, 3))
        for failures, pause_s in ((1, 1), (2, 2), (3, 4)):
            starting = await eventually(lambda: live(world, pool))
            for claim in starting:
                await world.move(claim, ClaimState.FAILED, reason="import of app failed: No module x", user_error=True)
            verdict = await eventually(lambda n=failures: told_failures(world, pool, n))  # type: ignore[misc]
            assert verdict.message == f"import of app failed: No module x; next try in {pause_s} s"
            assert verdict.retry_at == pytest.approx(clock.now() + pause_s)
            assert await live(world, pool) == []
            await clock.advance(pause_s + 1.1)
            await world.node()
        (claim,) = await eventually(lambda: live(world, pool))
        await world.move(claim, ClaimState.READY)
        await eventually(lambda: count(world, pool, 3))
        await eventually(lambda: no_verdict(world, pool))


async def test_a_start_is_told_how_many_before_it_were_killed(slow_world: tuple[World, FakeClock]) -> None:
    world, clock = slow_world
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 1)
        for killed, pause_s in ((0, 1), (1, 2)):
            (claim,) = await eventually(lambda: live(world, pool))
            assert claim.killed_before == killed
            await world.move(claim, ClaimState.FAILED, reason="killed by SIGKILL", killed=True)
            verdict = await eventually(lambda n=killed + 1: told_failures(world, pool, n))  # type: ignore[misc]
            assert verdict.killed == killed + 1
            await clock.advance(pause_s + 1.1)
            await world.node()


async def test_a_pool_whose_starts_fail_holds_no_room(slow_world: tuple[World, FakeClock]) -> None:
    world, _ = slow_world
    async with world.scheduler():
        await world.node(cpu=0.25)
        broken = await world.function("broken")
        await world.desire(broken, 1)
        (claim,) = await eventually(lambda: live(world, broken))
        await world.move(claim, ClaimState.FAILED, reason="broken")
        await eventually(lambda: told_failures(world, broken, 1))

        other = await world.function("other")
        await world.desire(other, 1)
        await eventually(lambda: count(world, other, 1))

        await world.desire(other, 2)

        await eventually(lambda: count(world, other, 2))


async def test_a_restarted_scheduler_remembers_how_often_starts_have_failed(
    slow_world: tuple[World, FakeClock],
) -> None:
    world, clock = slow_world
    pool = await world.function()
    await world.node()
    await world.desire(pool, 1)
    async with world.scheduler():
        (claim,) = await eventually(lambda: live(world, pool))
        await world.move(claim, ClaimState.FAILED, reason="broken")
        await eventually(lambda: told_failures(world, pool, 1))
    async with world.scheduler():
        assert await live(world, pool) == []
        await clock.advance(2.1)
        (claim,) = await eventually(lambda: live(world, pool))
        await world.move(claim, ClaimState.FAILED, reason="broken")
        await eventually(lambda: told_failures(world, pool, 2))


async def test_idle_containers_are_drained_the_longest_idle_first_and_busy_ones_never(world: World) -> None:
    async with world.scheduler(tick_s=0.02):
        await world.node()
        pool = await world.function()
        await world.desire(pool, 3)
        await eventually(lambda: count(world, pool, 3))
        busy, idle, longest = await world.all_ready(pool)
        await world.desire(pool, 0)

        async def drained(*expected: ContainerClaim) -> bool:
            world.stats_rows("node-a", [(busy, 1, 0.0), (idle, 0, 2000.0), (longest, 0, 1000.0)])
            found = [claim.ordinal for claim in await world.claims(pool, ClaimState.DRAINING)]
            return found == sorted(claim.ordinal for claim in expected)

        await eventually(lambda: drained(idle, longest))
        await world.desire(pool, 2)
        await eventually(lambda: count(world, pool, 4))
        assert not any(c.ordinal == busy.ordinal for c in await world.claims(pool, ClaimState.DRAINING))


async def test_the_containers_of_a_stopped_app_are_drained_though_they_are_busy(world: World) -> None:
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 2)
        await eventually(lambda: count(world, pool, 2))
        await world.all_ready(pool)
        await world.point("ap-1", {}, state="stopped")
        await eventually(lambda: count(world, pool, 2, ClaimState.DRAINING))


async def test_the_containers_of_a_node_that_fell_silent_are_placed_elsewhere(
    slow_world: tuple[World, FakeClock],
) -> None:
    world, clock = slow_world
    async with world.scheduler():
        await world.node("node-a")
        pool = await world.function()
        await world.desire(pool, 1)
        (claim,) = await eventually(lambda: live(world, pool))
        await world.move(claim, ClaimState.READY)
        for _ in range(8):
            await clock.advance(1.0)
            await world.node("node-b")
        await world.eventually_seen("node-b")
        assert [c.container for c in await live(world, pool)] == [claim.container]
        for _ in range(4):
            await clock.advance(1.0)
            await world.node("node-b")
        await eventually(lambda: placed_on(world, pool, "node-b"))


async def test_a_proposal_that_its_node_does_not_answer_goes_to_another(slow_world: tuple[World, FakeClock]) -> None:
    world, clock = slow_world
    async with world.scheduler():
        await world.node("node-a")
        pool = await world.function()
        await world.desire(pool, 1)
        await eventually(lambda: placed_on(world, pool, "node-a"))
        for _ in range(12):
            await clock.advance(1.0)
            await world.node("node-a")
            await world.node("node-b")
        await eventually(lambda: placed_on(world, pool, "node-b"))


async def test_an_idle_container_of_another_pool_makes_room_for_one_that_waits(world: World) -> None:
    async with world.scheduler(tick_s=0.05):
        await world.node(cpu=0.5)
        old = await world.function("old")
        await world.desire(old, 3)
        await eventually(lambda: count(world, old, 3))
        busy, idle, longest = await world.all_ready(old)
        new = await world.function("new", cpu=0.25)
        await world.desire(new, 1)
        await eventually(lambda: world.verdict(new))

        async def leaving(*expected: int) -> bool:
            since = world.clock.now()
            world.stats_rows("node-a", [(busy, 1, 0.0), (idle, 0, since - 5), (longest, 0, since - 9)])
            return [c.ordinal for c in await world.claims(old, ClaimState.DRAINING)] == list(expected)

        await eventually(lambda: leaving(longest.ordinal))
        (claim,) = await world.claims(old, ClaimState.DRAINING)
        assert claim.reason == f"makes room for {new}"
        await world.gone(claim)
        await eventually(lambda: placed_on(world, new, "node-a"))
        await eventually(lambda: no_verdict(world, new))
        assert await world.claims(old, ClaimState.DRAINING) == []


async def test_a_busy_pool_with_several_containers_gives_one_to_a_pool_that_has_none(world: World) -> None:
    async with world.scheduler(tick_s=0.05):
        await world.node(cpu=0.5)
        old = await world.function("old", cpu=0.25)
        await world.desire(old, 2)
        await eventually(lambda: count(world, old, 2))
        busy = await world.all_ready(old)
        new = await world.function("new", cpu=0.25)
        await world.desire(new, 1)

        async def leaving() -> bool:
            world.stats_rows("node-a", [(claim, 1, 0.0) for claim in busy])
            return len(await world.claims(old, ClaimState.DRAINING)) == 1

        await eventually(leaving)
        (claim,) = await world.claims(old, ClaimState.DRAINING)
        await world.desire(old, 2)  # there is still work for it, but the room is for the one that has none
        await world.gone(claim)

        await eventually(lambda: placed_on(world, new, "node-a"))
        assert len(await world.claims(old, ClaimState.READY)) == 1
        await eventually(lambda: world.verdict(old))


# --- robustness ------------------------------------------------------------------------------------------------------


async def test_a_record_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    for bucket in (SPECS, NODES, CONTAINERS, DESIRED):
        await world.bus.kv(bucket).put("nonsense.0", b"\xff")
    async with world.scheduler():
        await world.node()
        pool = await world.function()
        await world.desire(pool, 1)
        await eventually(lambda: world.claims(pool))


async def one_that_was_told_everything(world: World, *, times: int = 1) -> Scheduler:
    """A scheduler without watches: it knows what there is now, and then what tests tell it."""
    scheduler = Scheduler(world.bus, world.clock)
    scheduler.on_connected()
    facts = {
        SPECS: scheduler.on_spec,
        "apps": scheduler.on_app,
        NODES: scheduler.on_node,
        DESIRED: scheduler.on_desired,
    }
    for bucket, handler in facts.items():
        for entry in await world.bus.kv(bucket).entries():
            for _ in range(times):
                handler(Change(entry.key, entry.value, entry.revision))
    return scheduler


async def test_a_race_that_was_lost_is_not_run_again_until_the_watch_tells_who_won(
    slow_world: tuple[World, FakeClock],
) -> None:
    world, clock = slow_world
    await world.node()
    pool = await world.function(max_containers=1)
    await world.desire(pool, 1)
    scheduler = await one_that_was_told_everything(world)
    await scheduler.settle(PoolId(pool))
    (claim,) = await world.claims(pool)
    await world.gone(claim)

    # Nobody has answered that proposal, as far as this scheduler knows: it removes the claim, which is not there.
    await clock.advance(UNANSWERED_S + 1)
    alive = NodeFact(node="node-a", region="local", at=clock.now(), cpu=4.0, memory_mib=4096)
    scheduler.facts.machines.node_seen(alive, clock.now())
    async with asyncio.TaskGroup() as tasks:
        working = tasks.create_task(scheduler.work())
        scheduler.look_at(PoolId(pool))
        await eventually(lambda: scheduler.metrics.lost_races)
        for _ in range(20):
            await world.claims(pool)
        assert scheduler.metrics.lost_races == 1

        key = claim_key(pool, 0)
        revision, _ = await world.bus.kv(CONTAINERS).revision(key)
        scheduler.on_claim(Change(key, None, revision))
        await eventually(lambda: world.claims(pool))
        working.cancel()


async def test_every_fact_may_come_twice_and_late(world: World) -> None:
    await world.node()
    pool = await world.function()
    await world.desire(pool, 1)
    scheduler = await one_that_was_told_everything(world, times=2)
    for _ in range(2):
        for waiting in scheduler.facts.pools():
            await scheduler.settle(waiting)
    (claim,) = await world.claims(pool)
    (entry,) = await world.bus.kv(CONTAINERS).entries()
    await world.move(claim, ClaimState.READY)
    late = Change(entry.key, entry.value, entry.revision)
    newer = await world.bus.kv(CONTAINERS).get(entry.key)
    assert newer is not None
    for change in (Change(newer.key, newer.value, newer.revision), late, late):
        scheduler.on_claim(change)
    (known,) = scheduler.facts.pool(next(iter(scheduler.facts.pools())), 0.0).claims
    assert known.ready


async def test_a_stopped_scheduler_gives_its_leases_back(world: World, tmp_path: Path) -> None:
    async with world.scheduler() as running:
        await eventually(lambda: leases(world))
        assert running.health.ready
    assert running.drained
    assert await leases(world) == []


async def leases(world: World) -> list[str]:
    return [entry.key for entry in await world.bus.kv("leases").entries()]


async def count(world: World, pool: str, number: int, *states: str) -> bool:
    return len(await world.claims(pool, *states)) == number


async def placed_on(world: World, pool: str, node: str) -> bool:
    return [claim.node for claim in await live(world, pool)] == [node]


async def no_verdict(world: World, pool: str) -> bool:
    return await world.verdict(pool) is None


async def told_failures(world: World, pool: str, failures: int):  # type: ignore[no-untyped-def]
    verdict = await world.verdict(pool)
    return verdict if verdict is not None and verdict.failures == failures else None
