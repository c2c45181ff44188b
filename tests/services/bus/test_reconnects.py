"""What a crash of the server does to work in flight: nothing acknowledged is lost, nothing is stuck."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

import pytest
from tests.services.bus.conftest import TOPOLOGY
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import (
    Bus,
    BusError,
    BusSettings,
    BusUnavailable,
    ConsumerSpec,
    Delivery,
    Published,
    PublishUnknown,
    Record,
    SubjectTaken,
    WrongRevision,
    connect,
)

T = TypeVar("T")

pytestmark = pytest.mark.slow


class Load:
    """Publishers that never stop, and what they were told."""

    def __init__(self, bus: Bus, stem: str) -> None:
        self.acked: dict[str, int] = {}
        self.failed: list[BusError] = []
        self.stopping = False
        self._bus = bus
        self._stem = stem
        self._number = 0

    async def publish_until_stopped(self) -> None:
        while not self.stopping:
            self._number += 1
            subject = f"{self._stem}.{self._number}"
            try:
                ack = await self._bus.publish(subject, subject.encode(), msg_id=subject)
            except BusError as error:
                self.failed.append(error)
            else:
                self.acked[subject] = ack.seq


@pytest.mark.parametrize("stem", ["first", "plain"])
async def test_no_acknowledged_record_is_lost_and_none_is_stuck_when_the_server_is_killed_under_load(
    bus: Bus, server: NatsServer, stem: str
) -> None:
    load = Load(bus, stem)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for _ in range(64):
            tasks.create_task(load.publish_until_stopped())
        for _ in range(3):
            before = len(load.acked)
            await eventually(lambda: len(load.acked) > before + 300)  # noqa: B023
            await server.restart()
        before = len(load.acked)
        await eventually(lambda: len(load.acked) > before + 300)
        load.stopping = True

    stored = {record.subject: record.seq async for record in bus.read(stem.upper())}
    assert load.failed == []
    assert {subject: seq for subject, seq in load.acked.items() if stored.get(subject) != seq} == {}
    assert set(stored) == set(load.acked), "a record was stored that nobody was told about"
    assert bus.stats.reconnects == 3


async def test_a_record_whose_ack_was_lost_is_stored_once(bus: Bus, server: NatsServer) -> None:
    async with asyncio.TaskGroup() as tasks:
        server.pause()
        publishing = [tasks.create_task(bus.publish(f"log.{n}", b"x")) for n in range(20)]
        await eventually(lambda: bus.stats.writes > 0)
        server.resume()  # it may have stored the records by the time it is killed
        await server.restart()

    assert len({task.result().seq for task in publishing}) == 20
    assert (await bus.stream_info("LOG")).messages == 20


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("stream", ["first", "log"])
async def test_a_repeat_after_the_duplicate_window_knows_its_own_record_from_another(
    settings: BusSettings, server: NatsServer, stream: str, mine: bool
) -> None:
    """The server has forgotten the msg id, so it refuses the repeat; only the record itself tells who was first."""
    streams = tuple(replace(spec, duplicate_window_s=0.1) for spec in TOPOLOGY.streams)
    expect = {"Nats-Expected-Last-Subject-Sequence": "0"}
    async with connect(settings, replace(TOPOLOGY, streams=streams)) as bus:
        await bus.ensure_topology()
        first = await bus.publish(f"{stream}.a", b"x", msg_id="mine" if mine else "another")
        server.pause()
        async with asyncio.TaskGroup() as tasks:
            repeat = bus.publish(f"{stream}.a", b"x", headers=expect, msg_id="mine")
            repeating = tasks.create_task(_outcome_of(repeat))
            await eventually(lambda: bus.stats.writes == 2)
            await server.restart()  # the repeat's first attempt gets no answer

    if mine:
        assert repeating.result() == Published(stream.upper(), first.seq, duplicate=True)
    else:
        assert isinstance(repeating.result(), SubjectTaken | WrongRevision)


async def test_a_publish_to_a_dead_server_ends_at_its_deadline_as_unavailable(bus: Bus, server: NatsServer) -> None:
    await server.kill()
    await eventually(lambda: not bus.connected)

    started = asyncio.get_running_loop().time()
    with pytest.raises(BusUnavailable):
        await bus.publish("log.a", b"x", deadline_s=0.5)
    assert 0.4 < asyncio.get_running_loop().time() - started < 1.5


async def test_a_publish_without_an_answer_ends_at_its_deadline_as_unknown(bus: Bus, server: NatsServer) -> None:
    server.pause()
    try:
        with pytest.raises(PublishUnknown):
            await bus.publish("log.a", b"x", deadline_s=0.5)
        outcomes = await bus.publish_batch([Record(f"log.{n}", b"x") for n in range(3)], deadline_s=0.5)
        assert [type(outcome) for outcome in outcomes] == [PublishUnknown] * 3
    finally:
        server.resume()


async def test_a_publish_in_flight_to_a_server_that_dies_is_unknown_at_its_deadline(
    bus: Bus, server: NatsServer
) -> None:
    server.pause()
    async with asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(_outcome_of(bus.publish("log.a", b"x", deadline_s=1)))
        await eventually(lambda: bus.stats.writes > 0)
        await server.kill()

    assert isinstance(publishing.result(), PublishUnknown)


async def test_a_publish_waits_for_the_server_to_come_back(bus: Bus, server: NatsServer) -> None:
    await server.kill()
    await eventually(lambda: not bus.connected)
    async with asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(bus.publish("log.a", b"x"))
        batch = tasks.create_task(bus.publish_batch([Record(f"log.b{n}", b"x") for n in range(10)]))
        await server.start()

    assert publishing.result().seq > 0
    assert all(isinstance(outcome, Published) for outcome in batch.result())


async def test_a_pull_goes_on_after_a_restart_without_a_stall(bus: Bus, server: NatsServer) -> None:
    await bus.ensure_consumer("WORK", ConsumerSpec(name="w", filter_subject="first.>"))
    got: list[Delivery] = []
    async with await bus.pull("WORK", "w", got.append) as puller:
        puller.want(10)
        await bus.publish("first.1", b"x")
        await eventually(lambda: len(got) == 1)
        got[0].ack()

        await server.restart()
        await bus.publish("first.2", b"x")
        restarted = asyncio.get_running_loop().time()
        await eventually(lambda: any(d.subject == "first.2" for d in got), within_s=3)
        assert asyncio.get_running_loop().time() - restarted < 2
        assert puller.outstanding <= 10


async def test_work_flows_through_many_restarts_and_everything_is_delivered(bus: Bus, server: NatsServer) -> None:
    await bus.ensure_consumer("WORK", ConsumerSpec(name="w", filter_subject="first.>", ack_wait_s=1))
    seen: set[str] = set()

    def take(delivery: Delivery) -> None:
        seen.add(delivery.subject)
        delivery.ack()
        puller.want(32)

    load = Load(bus, "first")
    async with await bus.pull("WORK", "w", take) as puller, asyncio.timeout(60):
        puller.want(32)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(load.publish_until_stopped())
            for _ in range(4):
                before = len(seen)
                await eventually(lambda: len(seen) > before + 100, within_s=20)  # noqa: B023
                await server.restart()
            load.stopping = True
        await eventually(lambda: seen >= set(load.acked), within_s=20)


async def test_subscriptions_survive_a_restart(bus: Bus, server: NatsServer) -> None:
    got: list[bytes] = []
    await bus.subscribe("news.>", lambda message: got.append(message.data))

    await server.restart()
    await eventually(lambda: bus.stats.reconnects == 1)
    bus.send("news.a", b"after")

    await eventually(lambda: got == [b"after"])


async def test_reconnects_are_told_and_timed(bus: Bus, server: NatsServer) -> None:
    told: list[str] = []
    bus.on_disconnect(lambda: told.append("lost"))
    stop = bus.on_reconnect(lambda: told.append("back"))
    first = bus.connected_at

    await server.restart()
    await eventually(lambda: told == ["lost", "back"])
    assert bus.connected_at > first

    stop()
    await server.restart()
    await eventually(lambda: bus.stats.reconnects == 2)
    assert told == ["lost", "back", "lost"]


async def test_what_is_sent_while_disconnected_arrives_afterwards(bus: Bus, server: NatsServer) -> None:
    got: list[bytes] = []
    await bus.subscribe("news.>", lambda message: got.append(message.data))
    await server.kill()
    await eventually(lambda: not bus.connected)

    bus.send("news.a", b"kept")
    await server.start()

    await eventually(lambda: got == [b"kept"])


async def test_a_request_that_loses_its_connection_fails_at_once(bus: Bus, server: NatsServer) -> None:
    asked = asyncio.Event()
    await bus.subscribe("never.answers", lambda _: asked.set())
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_outcome_of(bus.request("never.answers", b"", timeout_s=30)))
        await asked.wait()
        await server.kill()

    assert isinstance(asking.result(), BusUnavailable)


async def _outcome_of(work: Awaitable[T]) -> T | BusError:
    try:
        return await work
    except BusError as error:
        return error


async def test_reads_wait_for_the_server_to_come_back(bus: Bus, server: NatsServer) -> None:
    await bus.publish_batch([Record(f"log.{n}", b"x") for n in range(5)])
    await server.kill()
    await eventually(lambda: not bus.connected)
    async with asyncio.TaskGroup() as tasks:
        last = tasks.create_task(bus.get_last("LOG", "log.1"))
        many = tasks.create_task(bus.get_many("LOG", ["log.1", "log.2"]))
        await server.start()

    assert last.result() is not None
    assert set(many.result()) == {"log.1", "log.2"}


async def test_who_listens_in_bunches_is_told_of_a_gap_and_hears_again(bus: Bus, server: NatsServer) -> None:
    got: list[bytes] = []
    reconnects: list[bool] = []
    await bus.subscribe("news.a", lambda message: got.append(message.data), in_bunches=True)
    bus.on_reconnect(lambda: reconnects.append(True))

    await server.restart()
    await eventually(lambda: len(reconnects) == 2)  # of both connections
    bus.send("news.a", b"after")
    await eventually(lambda: got == [b"after"])
