"""Publishing one record at a time: acks, first write wins, TTL, repeats, limits."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.eventually import eventually

from squall_bus import Bus, NotFound, Published, Record, StreamFull, SubjectTaken, WrongRevision
from squall_bus.wire import BadMessage


async def test_a_published_record_is_stored_with_its_headers(bus: Bus) -> None:
    ack = await bus.publish("log.a", b"\x00data\r\n", headers={"traceparent": "00-abc", "Über-ähm": "ö"}, msg_id="m1")

    stored = await bus.get_last("LOG", "log.a")
    assert ack == Published("LOG", 1, duplicate=False)
    assert stored is not None
    assert (stored.data, stored.seq) == (b"\x00data\r\n", 1)
    assert stored.headers["traceparent"] == "00-abc"
    assert stored.headers["Nats-Msg-Id"] == "m1"


async def test_a_repeated_msg_id_is_answered_as_a_duplicate_of_the_first(bus: Bus) -> None:
    first = await bus.publish("log.a", b"1", msg_id="same")
    await bus.publish("log.b", b"2")
    again = await bus.publish("log.a", b"1", msg_id="same")

    assert again == Published("LOG", first.seq, duplicate=True)
    assert (await bus.stream_info("LOG")).messages == 2


async def test_the_first_write_of_a_subject_wins(bus: Bus) -> None:
    await bus.publish("first.call", b"first", msg_id="attempt-1")

    with pytest.raises(SubjectTaken) as caught:
        await bus.publish("first.call", b"second", msg_id="attempt-2")

    stored = await bus.get_last("FIRST", "first.call")
    assert stored is not None
    assert stored.data == b"first"
    assert caught.value.data["subject"] == "first.call"


async def test_a_repeat_inside_the_duplicate_window_is_success_even_when_the_subject_is_taken(bus: Bus) -> None:
    first = await bus.publish("first.call", b"x", msg_id="call")
    again = await bus.publish("first.call", b"x", msg_id="call")

    assert (again.duplicate, again.seq) == (True, first.seq)


async def test_a_repeat_in_a_batch_with_others_is_a_duplicate_and_the_others_are_stored(bus: Bus) -> None:
    await bus.publish("first.call", b"x", msg_id="call")

    again, other = await asyncio.gather(
        bus.publish("first.call", b"x", msg_id="call"), bus.publish("first.other", b"y", msg_id="other")
    )

    assert again.duplicate
    assert not other.duplicate
    assert (await bus.stream_info("FIRST")).messages == 2


@pytest.mark.slow
async def test_a_record_vanishes_after_its_ttl(bus: Bus) -> None:
    await bus.publish("first.short", b"x", ttl_s=0.5)
    await bus.publish("first.long", b"x", ttl_s=600)

    await eventually(lambda: _gone(bus, "first.short"))
    assert await bus.get_last("FIRST", "first.long") is not None


async def _gone(bus: Bus, subject: str) -> bool:
    return await bus.get_last("FIRST", subject) is None


async def test_an_expected_sequence_header_that_does_not_hold_is_a_wrong_revision(bus: Bus) -> None:
    await bus.publish("log.a", b"1")

    with pytest.raises(WrongRevision):
        await bus.publish("log.a", b"2", headers={"Nats-Expected-Last-Subject-Sequence": "7"})


async def test_a_full_stream_is_reported_as_full(bus: Bus) -> None:
    outcomes = await bus.publish_batch([Record(f"small.{number}", b"x" * 500) for number in range(20)])

    assert isinstance(outcomes[0], Published)
    assert isinstance(outcomes[-1], StreamFull)


async def test_a_subject_outside_the_topology_is_refused_before_it_is_sent(bus: Bus) -> None:
    with pytest.raises(NotFound):
        await bus.publish("nowhere.a", b"x")


@pytest.mark.parametrize("subject", ["log.a b", "log.a\r\nPUB x 0\r\n", ""])
async def test_a_subject_that_would_break_the_protocol_is_refused(bus: Bus, subject: str) -> None:
    with pytest.raises((BadMessage, NotFound)):
        await bus.publish(subject, b"x")


async def test_a_header_with_a_line_break_is_refused(bus: Bus) -> None:
    with pytest.raises(BadMessage):
        await bus.publish("log.a", b"x", headers={"a": "1\r\nNats-Rollup: all"})


async def test_a_record_that_is_too_large_is_refused_and_the_connection_stays_up(bus: Bus) -> None:
    with pytest.raises(BadMessage):
        await bus.publish("log.a", b"x" * bus.max_payload, headers={"a": "b"})

    await bus.publish("log.a", b"x" * (bus.max_payload - 1000))
    assert bus.stats.reconnects == 0


async def test_a_cancelled_publish_does_not_disturb_the_others(bus: Bus) -> None:
    async with asyncio.TaskGroup() as tasks:
        cancelled = tasks.create_task(bus.publish("log.cancelled", b"x"))
        others = [tasks.create_task(bus.publish(f"log.{n}", b"x")) for n in range(10)]
        await asyncio.sleep(0)
        cancelled.cancel()

    assert all(other.result().stream == "LOG" for other in others)
