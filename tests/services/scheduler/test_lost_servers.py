"""One of three nats-servers that replicate goes away for good: the queues that only it had are made again elsewhere."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.services.scheduler.world import World
from tests.support.clock import FakeClock
from tests.support.eventually import eventually
from tests.support.nats_server import NatsCluster, NatsServer

from squall_bus import BusSettings, BusUnavailable, Delivery, NotFound, connect
from squall_contracts import subjects, topology
from squall_scheduler.facts import Facts
from squall_scheduler.reconciler import AWAY_S, Reconciler

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
WORK = subjects.work_stream("local", 0)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    async with NatsCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def world(cluster: NatsCluster) -> AsyncIterator[World]:
    settings = BusSettings(url=cluster.url, shards=1, replicas=3, connect_timeout_s=30)
    async with connect(settings, topology.build("local", 1, 3)) as bus:
        await bus.ensure_topology()
        yield World(bus=bus, server=cluster.servers[0])


async def server_of_queue(world: World, cluster: NatsCluster) -> NatsServer:
    answer = await world.bus.request(f"$JS.API.STREAM.INFO.{WORK}", b"")
    name = json.loads(answer.data)["cluster"]["leader"]
    return next(server for server in cluster.servers if server.name == name)


async def queue_exists(world: World) -> bool:
    """Also where nobody is up who has it."""
    with suppress(BusUnavailable):
        try:
            await world.bus.stream_info(WORK)
        except NotFound:
            return False
    return True


async def test_a_queue_is_made_again_without_the_server_that_had_it(world: World, cluster: NatsCluster) -> None:
    clock, counts = FakeClock(time.time()), Counter[str]()
    reconciler = Reconciler(world.bus, Facts(), clock, 0, counts)
    await reconciler.tail.start()
    pool = await world.function()
    ended, waiting = await world.call(pool), await world.call(pool)
    await world.finish(pool, ended)
    gone = await server_of_queue(world, cluster)
    await gone.kill()

    async def after(seconds: float) -> None:
        await clock.advance(seconds)
        await reconciler.tick()

    meanwhile = await world.call(pool)
    killed_at = clock.monotonic()

    async def given_up() -> bool:
        await after(AWAY_S / 2)
        return not await queue_exists(world)

    await eventually(given_up, within_s=100)
    assert clock.monotonic() - killed_at > AWAY_S, "a server that is only restarted would find its queue taken away"

    async def queued() -> bool:
        await after(1)
        if not await queue_exists(world):
            return False
        found = (await world.bus.stream_info(WORK, "calls.>")).subjects
        return {subject.split(".")[4] for subject in found} == {waiting, meanwhile}

    await eventually(queued)
    await after(1)
    taken: list[Delivery] = []
    async with await world.bus.pull(WORK, pool, taken.append) as puller:
        puller.want(2)
        await eventually(lambda: len(taken) == 2)

    await gone.start()
    await eventually(lambda: _knows(cluster, gone))
    assert (await server_of_queue(world, cluster)).name != gone.name, "it brought its queue back"
    await reconciler.tail.close()


async def _knows(cluster: NatsCluster, server: NatsServer) -> bool:
    """Whether a server that came back answers for the cluster's streams."""
    async with connect(BusSettings(url=server.url, connect_timeout_s=30), topology.build("local", 1, 3)) as bus:
        return bool((await bus.stream_info(WORK)).messages)
