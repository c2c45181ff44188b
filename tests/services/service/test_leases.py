"""Leader leases: one at a time, handed on, given back, lost loudly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusSettings, connect
from squall_contracts.topology import BucketSpec, Topology
from squall_service.leases import LeaderLease, Leadership

pytestmark = pytest.mark.slow

TOPOLOGY = Topology("local", 1, (), (BucketSpec("leases", ttl_s=10),))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[Bus]:
    async with connect(BusSettings(url=server.url), TOPOLOGY) as bus:
        await bus.ensure_topology()
        yield bus


class Candidate:
    """Somebody who would lead."""

    def __init__(self, bus: Bus, name: str, ttl_s: float = 1.0) -> None:
        self.lease = LeaderLease(bus, "autoscaler", name, ttl_s)
        self.terms: list[Leadership] = []
        self.stopped = 0

    async def lead(self, term: Leadership) -> None:
        self.terms.append(term)
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped += 1

    async def run(self) -> None:
        await self.lease.run(self.lead)


async def test_one_of_many_leads_and_another_takes_over_when_it_stops(bus: Bus) -> None:
    candidates = [Candidate(bus, f"as-{n}") for n in range(5)]
    async with asyncio.TaskGroup() as tasks:
        running = {candidate: tasks.create_task(candidate.run()) for candidate in candidates}
        await eventually(lambda: any(c.terms for c in candidates))
        (first,) = [c for c in candidates if c.lease.leading]
        assert await first.lease.holder() == f"as-{candidates.index(first)}"

        running.pop(first).cancel()
        await eventually(lambda: any(c.terms for c in running))
        (second,) = [c for c in running if c.lease.leading]
        assert second.terms[0].epoch > first.terms[0].epoch
        for task in running.values():
            task.cancel()
    assert first.stopped == 1


async def test_a_leader_that_was_paused_past_its_term_leads_again(bus: Bus) -> None:
    terms: list[Leadership] = []

    async def lead(term: Leadership) -> None:
        """As services do it: it ends by itself when its term is over."""
        terms.append(term)
        while term.holds():  # noqa: ASYNC110 - the loop of a service
            await asyncio.sleep(0.001)

    lease = LeaderLease(bus, "autoscaler", "a", ttl_s=1.0)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(lease.run(lead))
        await eventually(lambda: terms)
        terms[0].held_until = 0.0  # what a pause does, seen by the leader before its renewal sees it
        await eventually(lambda: len(terms) > 1)
        assert lease.leading
        running.cancel()


@pytest.mark.slow
async def test_a_leader_stays_the_leader_for_many_ttls(bus: Bus) -> None:
    leader, standby = Candidate(bus, "a"), Candidate(bus, "b")
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(leader.run())
        await eventually(lambda: leader.lease.leading)
        two = tasks.create_task(standby.run())
        await asyncio.sleep(3)
        assert leader.lease.leading
        assert (len(leader.terms), len(standby.terms)) == (1, 0)
        one.cancel()
        two.cancel()


async def test_the_work_ends_the_term_and_the_lease_is_free_at_once(bus: Bus) -> None:
    async def short(term: Leadership) -> None:
        assert term.holds()

    lease = LeaderLease(bus, "cron", "a")
    await lease.run(short)
    assert await lease.holder() is None
    await LeaderLease(bus, "cron", "b").run(short)


async def test_an_error_of_the_work_comes_out_and_frees_the_lease(bus: Bus) -> None:
    async def fail(_: Leadership) -> None:
        raise KeyError("a bug")

    lease = LeaderLease(bus, "cron", "a")
    with pytest.raises(KeyError):
        await lease.run(fail)
    assert await lease.holder() is None


@pytest.mark.slow
async def test_a_leader_whose_lease_was_taken_stops_and_stands_by(bus: Bus) -> None:
    leader = Candidate(bus, "a")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(leader.run())
        await eventually(lambda: leader.lease.leading)
        await bus.kv("leases").put("autoscaler", b"somebody", ttl_s=1)

        await eventually(lambda: leader.stopped == 1)
        await eventually(lambda: len(leader.terms) == 2)
        running.cancel()


@pytest.mark.slow
async def test_a_leader_that_cannot_reach_the_bus_stops_before_its_lease_expires(bus: Bus, server: NatsServer) -> None:
    leader = Candidate(bus, "a", ttl_s=2)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(leader.run())
        await eventually(lambda: leader.lease.leading)
        server.pause()
        paused = loop.time()
        await eventually(lambda: leader.stopped == 1)
        assert loop.time() - paused < 2
        assert not leader.terms[0].holds()

        server.resume()
        await eventually(lambda: len(leader.terms) == 2)
        running.cancel()


@pytest.mark.slow
async def test_a_lease_survives_a_restart_of_the_server(bus: Bus, server: NatsServer) -> None:
    leader, standby = Candidate(bus, "a", ttl_s=4), Candidate(bus, "b", ttl_s=4)
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(leader.run())
        await eventually(lambda: leader.lease.leading)
        two = tasks.create_task(standby.run())
        await server.restart()
        await eventually(lambda: bus.connected)
        await asyncio.sleep(2)  # two renewals
        assert leader.lease.leading
        assert standby.terms == []
        one.cancel()
        two.cancel()
