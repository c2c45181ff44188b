"""Pulling work: what was wanted comes once, is answered once, and nothing stays behind when the puller goes."""

from __future__ import annotations

import asyncio

import pytest
from tests.services.bus.conftest import TOPOLOGY
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusSettings, ConsumerSpec, Delivery, Record, connect

SPEC = ConsumerSpec(name="w", filter_subject="first.>", ack_wait_s=1)


@pytest.fixture
async def work(bus: Bus) -> Bus:
    """A bus whose stream WORK has the consumer `w`."""
    await bus.ensure_consumer("WORK", SPEC)
    return bus


async def put(bus: Bus, count: int, stem: str = "first") -> None:
    await bus.publish_batch([Record(f"{stem}.{n}", b"x", {"n": str(n)}) for n in range(count)])


async def consumer(bus: Bus):  # type: ignore[no-untyped-def]
    info = await bus.consumer_info("WORK", "w")
    assert info is not None
    return info


async def test_nothing_is_delivered_before_it_is_wanted(work: Bus) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        await put(work, 3)
        await eventually(lambda: _pending(work, 3))
        assert (got, puller.outstanding) == ([], 0)

        puller.want(2)
        await eventually(lambda: len(got) == 2)
        assert (await consumer(work)).pending == 1


async def _pending(bus: Bus, count: int) -> bool:
    return bool((await consumer(bus)).pending == count)


async def test_a_consumer_that_is_paused_delivers_nothing_until_it_goes_on(work: Bus) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(5)
        await work.pause_consumer("WORK", "w", 60)
        await put(work, 3)
        await eventually(lambda: _pending(work, 3))
        assert not got

        await work.pause_consumer("WORK", "w", 0.05)
        await eventually(lambda: len(got) == 3)


async def test_a_pause_ends_by_itself(work: Bus) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await work.pause_consumer("WORK", "w", 0.3)
        await put(work, 1)
        await eventually(lambda: len(got) == 1)


async def test_a_delivery_tells_what_the_server_knows_about_it(work: Bus) -> None:
    ack = await work.publish("first.a", b"payload", headers={"traceparent": "00-abc", "x": "1"}, msg_id="id")
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await eventually(lambda: len(got) == 1)

    (delivery,) = got
    stored = await work.get_last("FIRST", "first.a")
    assert stored is not None
    assert (delivery.subject, delivery.data) == ("first.a", b"payload")
    assert delivery.header("traceparent") == delivery.headers["traceparent"] == "00-abc"
    assert delivery.header("missing") is None
    assert (delivery.num_delivered, delivery.stream_seq, delivery.consumer_seq) == (1, ack.seq, 1)
    assert delivery.pending == 0
    assert abs(delivery.published_at - stored.stored_at) < 5


async def test_an_acked_delivery_is_gone_and_a_second_answer_is_ignored(work: Bus) -> None:
    await put(work, 1)
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await eventually(lambda: len(got) == 1)
        got[0].ack()
        got[0].nak()
        got[0].term()
        await eventually(lambda: _empty(work))

        assert not await got[0].ack_confirmed()
        assert not await got[0].in_progress()


async def _empty(bus: Bus) -> bool:
    return (await bus.stream_info("WORK")).messages == 0


async def test_a_confirmed_ack_is_on_the_server_when_it_returns(work: Bus) -> None:
    await put(work, 1)
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await eventually(lambda: len(got) == 1)

        assert await got[0].ack_confirmed()
        assert (await work.stream_info("WORK")).messages == 0


async def test_a_nak_brings_the_message_back_at_once_or_after_its_delay(work: Bus) -> None:
    await put(work, 1)
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await eventually(lambda: len(got) == 1)
        got[0].nak()
        puller.want(1)
        await eventually(lambda: len(got) == 2)

        given_back = asyncio.get_running_loop().time()
        got[1].nak(delay_s=0.3)
        puller.want(1)
        await eventually(lambda: len(got) == 3)

    assert asyncio.get_running_loop().time() - given_back > 0.25
    assert [delivery.num_delivered for delivery in got] == [1, 2, 3]


async def test_a_terminated_message_is_never_delivered_again(work: Bus) -> None:
    await put(work, 1)
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(5)
        await eventually(lambda: len(got) == 1)
        got[0].term()
        await eventually(lambda: _empty(work))


@pytest.mark.slow
async def test_a_message_kept_in_progress_is_not_redelivered_and_comes_back_when_that_ends(work: Bus) -> None:
    await put(work, 1)
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(5)
        await eventually(lambda: len(got) == 1)
        loop = asyncio.get_running_loop()
        until = loop.time() + 2.0
        while loop.time() < until:
            assert await got[0].in_progress()
            await asyncio.sleep(0.3)  # the heartbeat itself
        assert len(got) == 1

        await eventually(lambda: len(got) == 2)
        assert got[1].num_delivered == 2


async def test_in_progress_is_not_confirmed_by_a_server_that_does_not_answer(work: Bus, server: NatsServer) -> None:
    await put(work, 1)
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await eventually(lambda: len(got) == 1)
        server.pause()
        try:
            assert not await got[0].in_progress(timeout_s=0.2)
        finally:
            server.resume()


async def test_a_confirmation_does_not_mean_that_the_message_is_still_ours(work: Bus) -> None:
    """What the server does (2.15.1), and why fencing goes by time: a stale attempt is confirmed as well."""
    await put(work, 1)
    stale: list[Delivery] = []
    fresh: list[Delivery] = []
    async with (
        await work.pull("WORK", "w", stale.append) as first,
        await work.pull("WORK", "w", fresh.append) as second,
    ):
        first.want(1)
        await eventually(lambda: len(stale) == 1)
        second.want(1)
        await eventually(lambda: len(fresh) == 1)
        assert fresh[0].num_delivered == 2
        assert await stale[0].in_progress()
        assert await fresh[0].ack_confirmed()
        assert await stale[0].in_progress()


async def test_wanting_again_tops_up_and_never_asks_for_more_than_that(work: Bus) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(4)
        puller.want(6)
        puller.want(6)
        await eventually(lambda: puller.outstanding == 6)
        await put(work, 20)
        await eventually(lambda: len(got) == 6)
        await eventually(lambda: _ack_pending(work, 6))
        assert puller.outstanding == 0


async def _ack_pending(bus: Bus, count: int) -> bool:
    return bool((await consumer(bus)).ack_pending == count)


@pytest.mark.slow
async def test_an_expired_request_is_made_again(work: Bus) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append, expires_s=0.3) as puller:
        puller.want(3)
        await eventually(lambda: _waiting(work, 1))
        await asyncio.sleep(1)  # three expiries
        assert puller.outstanding == 3

        await put(work, 3)
        await eventually(lambda: len(got) == 3)
        assert puller.outstanding == 0


async def _waiting(bus: Bus, count: int) -> bool:
    return bool((await consumer(bus)).waiting == count)


@pytest.mark.slow
async def test_a_request_that_vanishes_without_a_status_is_made_again(work: Bus, server: NatsServer) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append, expires_s=0.3) as puller:
        await work.delete_consumer("WORK", "w")  # the request below is answered with 503 or swallowed
        puller.want(1)
        await eventually(lambda: puller.outstanding == 0)
        await work.ensure_consumer("WORK", SPEC)
        await put(work, 1)
        await eventually(lambda: len(got) == 1)


async def test_a_deleted_and_remade_consumer_is_pulled_again(work: Bus) -> None:
    got: list[Delivery] = []
    async with await work.pull("WORK", "w", got.append) as puller:
        puller.want(1)
        await eventually(lambda: _waiting(work, 1))
        await work.delete_consumer("WORK", "w")
        await work.ensure_consumer("WORK", SPEC)
        await put(work, 1)
        await eventually(lambda: len(got) == 1)


async def test_a_closed_puller_leaves_no_open_pull(work: Bus) -> None:
    got: list[Delivery] = []
    puller = await work.pull("WORK", "w", got.append)
    puller.want(10)
    await eventually(lambda: _waiting(work, 1))
    await puller.close()

    await put(work, 1)
    other: list[Delivery] = []
    async with await work.pull("WORK", "w", other.append) as second:
        second.want(1)
        await eventually(lambda: len(other) == 1)
    assert got == []
    assert other[0].num_delivered == 1


async def test_a_cancelled_user_of_a_puller_leaves_no_open_pull(work: Bus) -> None:
    opened = asyncio.Event()

    async def use() -> None:
        async with await work.pull("WORK", "w", lambda _: None) as puller:
            puller.want(10)
            await eventually(lambda: _waiting(work, 1))
            opened.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        using = tasks.create_task(use())
        await opened.wait()
        using.cancel()

    await put(work, 1)
    other: list[Delivery] = []
    async with await work.pull("WORK", "w", other.append) as second:
        second.want(1)
        await eventually(lambda: len(other) == 1)
    assert other[0].num_delivered == 1


async def test_deliveries_that_arrive_while_closing_are_given_back(work: Bus, server: NatsServer) -> None:
    await put(work, 200)
    got: list[Delivery] = []
    puller = await work.pull("WORK", "w", got.append)
    puller.want(200)
    await eventually(lambda: work.stats.delivered > 0)
    await puller.close()
    taken = len(got)

    rest: list[Delivery] = []
    async with await work.pull("WORK", "w", rest.append) as second:
        second.want(300)
        await eventually(lambda: len(rest) == 200 - taken)


async def test_a_callback_that_fails_does_not_stop_the_puller(work: Bus) -> None:
    got: list[str] = []

    def fail_at_first(delivery: Delivery) -> None:
        got.append(delivery.subject)
        if len(got) == 1:
            raise RuntimeError("a bug of the caller")

    await put(work, 2)
    async with await work.pull("WORK", "w", fail_at_first) as puller:
        puller.want(2)
        await eventually(lambda: len(got) == 2)
    assert work.stats.callback_errors == 1


async def test_remote_agents_get_work_only_when_local_ones_do_not_want_it(work: Bus, settings: BusSettings) -> None:
    local: list[Delivery] = []
    remote: list[Delivery] = []
    async with (
        connect(settings, TOPOLOGY) as elsewhere,
        await elsewhere.pull("WORK", "w", remote.append, priority=1) as far,
        await work.pull("WORK", "w", local.append, priority=0) as near,
    ):
        far.want(10)
        await eventually(lambda: _waiting(work, 1))
        near.want(3)
        await eventually(lambda: _waiting(work, 2))
        await put(work, 5)
        await eventually(lambda: len(local) + len(remote) == 5)

    assert (len(local), len(remote)) == (3, 2)
