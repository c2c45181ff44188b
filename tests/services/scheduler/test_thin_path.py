"""Autoscaler and scheduler together: from the first call to a proposed container, and back to zero."""

from __future__ import annotations

from tests.services.scheduler.world import World
from tests.support.eventually import eventually

from squall_contracts.nodes import ClaimState


async def test_the_first_call_of_a_pool_proposes_a_container(world: World) -> None:
    async with world.scheduler(), world.autoscaler():
        await world.node()
        pool = await world.function()
        began = world.clock.now()
        call = await world.call(pool)
        (claim,) = await eventually(lambda: world.claims(pool))
        assert claim.state == ClaimState.PROPOSED
        assert claim.node == "node-a"
        assert claim.cold_call == call
        assert [row[0] for row in claim.spans] == ["autoscaler.decide", "scheduler.place"]
        print("claim after", claim.created_at - began)


async def test_a_pool_without_work_goes_to_zero_after_its_scaledown_window(world: World) -> None:
    async with world.scheduler(tick_s=0.05), world.autoscaler(tick_s=0.05):
        await world.node()
        pool = await world.function(scaledown_window_s=2)
        call = await world.call(pool)
        await eventually(lambda: world.claims(pool))
        ready = await world.all_ready(pool)
        await world.finish(pool, call)
        idle_since = world.clock.now()

        async def draining() -> bool:
            world.stats("node-a", ready, idle_since=idle_since)
            return bool(await world.claims(pool, ClaimState.DRAINING))

        await eventually(draining, every_s=0.05)
        assert world.clock.now() - idle_since >= 1.8
        assert await world.desired_count(pool) == 0
