"""Plain messages: send, subscribe, request."""

from __future__ import annotations

import asyncio

import pytest
from tests.services.bus.conftest import TOPOLOGY
from tests.support.eventually import eventually

from squall_bus import Bus, BusSettings, BusUnavailable, Message, connect
from squall_bus.wire import BadMessage


async def test_a_sync_callback_gets_every_message_in_order(bus: Bus) -> None:
    got: list[Message] = []
    await bus.subscribe("news.>", got.append)
    for number in range(100):
        bus.send("news.a", str(number).encode(), {"n": str(number)})

    await eventually(lambda: len(got) == 100)
    assert [int(message.data) for message in got] == list(range(100))
    assert got[7].headers == {"n": "7"}
    assert got[7].subject == "news.a"


async def test_an_async_callback_gets_one_message_at_a_time(bus: Bus) -> None:
    running, most, got = 0, 0, []

    async def slow(message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        got.append(message.data)

    await bus.subscribe("news.a", slow)
    for number in range(20):
        bus.send("news.a", str(number).encode())

    await eventually(lambda: len(got) == 20)
    assert most == 1


async def test_a_failing_callback_is_counted_and_the_subscription_goes_on(bus: Bus) -> None:
    got: list[bytes] = []

    async def fail(message: Message) -> None:
        got.append(message.data)
        raise RuntimeError("a bug of the caller")

    def fail_at_once(message: Message) -> None:
        got.append(message.data)
        raise RuntimeError("another bug of the caller")

    await bus.subscribe("news.a", fail)
    await bus.subscribe("news.b", fail_at_once)
    bus.send("news.a", b"1")
    bus.send("news.a", b"2")
    bus.send("news.b", b"3")

    await eventually(lambda: len(got) == 3)
    assert bus.stats.callback_errors == 3


async def test_a_closed_subscription_gets_nothing_more(bus: Bus) -> None:
    got: list[Message] = []
    subscription = await bus.subscribe("news.a", got.append)
    bus.send("news.a", b"1")
    await eventually(lambda: len(got) == 1)

    await subscription.close()
    bus.send("news.a", b"2")
    assert await bus.flush()
    assert len(got) == 1


async def test_members_of_a_queue_group_share_messages(bus: Bus, settings: BusSettings) -> None:
    mine: list[Message] = []
    theirs: list[Message] = []
    async with connect(settings, TOPOLOGY) as other:
        await bus.subscribe("news.a", mine.append, queue="q")
        await other.subscribe("news.a", theirs.append, queue="q")
        for _ in range(100):
            bus.send("news.a", b"")
        await eventually(lambda: len(mine) + len(theirs) == 100)
    assert mine
    assert theirs


async def test_a_request_gets_its_own_reply(bus: Bus) -> None:
    def echo(message: Message) -> None:
        bus.send(message.reply, message.data, {"from": "echo"})

    await bus.subscribe("echo", echo)
    replies = await asyncio.gather(*(bus.request("echo", str(n).encode()) for n in range(50)))

    assert [int(reply.data) for reply in replies] == list(range(50))
    assert replies[0].headers == {"from": "echo"}


async def test_a_request_that_nobody_serves_fails_at_once(bus: Bus) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(BusUnavailable):
        await bus.request("nobody", b"", timeout_s=10)
    assert asyncio.get_running_loop().time() - started < 1


async def test_a_request_without_a_reply_fails_in_time(bus: Bus) -> None:
    await bus.subscribe("silent", lambda _: None)
    with pytest.raises(BusUnavailable):
        await bus.request("silent", b"", timeout_s=0.05)


async def test_inboxes_are_unique_and_under_the_roles_prefix(settings: BusSettings) -> None:
    role = BusSettings(url=settings.url, inbox_prefix="_INBOX_gw")
    async with connect(role, TOPOLOGY) as bus:
        inboxes = {bus.new_inbox() for _ in range(10)}
        assert len(inboxes) == 10
        assert all(inbox.startswith("_INBOX_gw.") for inbox in inboxes)
        got: list[Message] = []
        await bus.subscribe(inboxes.pop(), got.append)


async def test_a_message_that_is_too_large_is_refused_and_the_connection_stays_up(bus: Bus) -> None:
    with pytest.raises(BadMessage):
        bus.send("news.a", b"x" * (bus.max_payload + 1))
    assert await bus.flush()
    assert bus.stats.reconnects == 0


async def test_large_messages_arrive_whole(bus: Bus) -> None:
    got: list[Message] = []
    await bus.subscribe("news.a", got.append)
    bodies = [bytes([n]) * (bus.max_payload - 100 * n) for n in range(8)]
    for body in bodies:
        bus.send("news.a", body, {"k": "v"} if body[0] % 2 else None)

    await eventually(lambda: len(got) == 8)
    assert [message.data for message in got] == bodies


async def test_what_is_heard_in_bunches_comes_in_order_and_many_at_a_time(bus: Bus) -> None:
    got: list[int] = []
    turns: list[int] = []
    """How many were heard in each turn of the loop that had any."""
    same_turn = False

    def next_turn() -> None:
        nonlocal same_turn
        same_turn = False

    def hear(message: Message) -> None:
        nonlocal same_turn
        if not same_turn:
            same_turn = True
            turns.append(0)
            asyncio.get_running_loop().call_soon(next_turn)
        turns[-1] += 1
        got.append(int(message.data))

    subscription = await bus.subscribe("news.>", hear, in_bunches=True)
    for number in range(200):
        bus.send("news.a", str(number).encode())
        await bus.request("$JS.API.INFO", b"")  # one at a time: without bunches each would have a turn of its own

    await eventually(lambda: len(got) == 200)
    assert got == list(range(200))
    assert len(turns) < 100
    await subscription.close()


async def test_more_than_one_read_takes_is_heard_in_bunches_too(bus: Bus) -> None:
    got: list[int] = []
    await bus.subscribe("news.>", lambda message: got.append(len(message.data)), in_bunches=True)
    for _ in range(50):
        bus.send("news.a", b"x" * 100_000)
    await eventually(lambda: len(got) == 50)
    assert set(got) == {100_000}
