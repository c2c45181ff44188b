"""Group commit: what waits together goes out together, and a refused batch does not take others down."""

from __future__ import annotations

import asyncio

from tests.support.eventually import eventually

from squall_bus import Bus, BusError, Published, Record, SubjectTaken, WrongRevision


def padding(stem: str) -> list[Record]:
    """Enough other records to make a batch: a few go out singly, because that is faster."""
    return [Record(f"{stem}.padding.{n}", b"x") for n in range(30)]


async def test_records_that_wait_at_the_same_time_become_one_write(bus: Bus) -> None:
    acks = await asyncio.gather(*(bus.publish(f"log.{n}", b"x") for n in range(100)))

    assert sorted(ack.seq for ack in acks) == list(range(1, 101))
    assert bus.stats.writes == 1


async def test_a_few_records_are_written_singly_at_the_same_time(bus: Bus) -> None:
    await asyncio.gather(*(bus.publish(f"log.{n}", b"x") for n in range(5)))

    assert bus.stats.writes == 5
    async for stored in bus.read("LOG"):
        assert "Nats-Batch-Id" not in stored.headers


async def test_each_record_of_a_batch_gets_its_own_sequence(bus: Bus) -> None:
    acks = await bus.publish_batch([Record(f"log.{n}", str(n).encode()) for n in range(50)])

    for number, ack in enumerate(acks):
        assert isinstance(ack, Published)
        stored = await bus.get_last("LOG", f"log.{number}")
        assert stored is not None
        assert (stored.seq, stored.data) == (ack.seq, str(number).encode())


async def test_a_batch_longer_than_the_servers_limit_is_split(bus: Bus) -> None:
    acks = await bus.publish_batch([Record(f"log.{n}", b"x") for n in range(2500)])

    assert [ack.seq for ack in acks if isinstance(ack, Published)] == list(range(1, 2501))
    assert bus.stats.writes == 3


async def test_one_refused_record_does_not_keep_the_others_of_its_batch_from_being_stored(bus: Bus) -> None:
    await bus.publish("first.3", b"taken")

    outcomes = await bus.publish_batch([Record(f"first.{n}", b"x", None, f"id-{n}") for n in range(30)])

    assert isinstance(outcomes[3], SubjectTaken)
    assert [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Published)] == [3]
    assert bus.stats.batches_refused == 1
    assert (await bus.stream_info("FIRST")).messages == 30


async def test_one_refused_record_does_not_make_a_thousand_single_writes(bus: Bus) -> None:
    await bus.publish("first.700", b"taken")
    before = bus.stats.writes

    outcomes = await bus.publish_batch([Record(f"first.{n}", b"x", None, f"id-{n}") for n in range(1000)])

    assert [n for n, outcome in enumerate(outcomes) if not isinstance(outcome, Published)] == [700]
    assert isinstance(outcomes[700], SubjectTaken)
    assert bus.stats.writes - before == 1 + 8 + 8 + 16


async def test_two_records_for_one_subject_in_a_batch_the_first_wins(bus: Bus) -> None:
    outcomes = await bus.publish_batch([Record("first.a", b"1"), Record("first.a", b"2"), *padding("first")])

    assert isinstance(outcomes[1], SubjectTaken)
    assert bus.stats.batches_refused == 1
    stored = await bus.get_last("FIRST", "first.a")
    assert stored is not None
    assert stored.data == b"1"


async def test_the_same_msg_id_twice_in_a_batch_is_one_record_and_a_duplicate(bus: Bus) -> None:
    same = Record("log.a", b"1", None, "same")

    first, second, *_ = await bus.publish_batch([same, same, *padding("log")])

    assert isinstance(first, Published)
    assert isinstance(second, Published)
    assert second.duplicate
    assert second.seq == first.seq


async def test_a_failed_expectation_inside_a_batch_is_that_records_outcome_alone(bus: Bus) -> None:
    expect = {"Nats-Expected-Last-Subject-Sequence": "99"}

    outcomes = await bus.publish_batch([*padding("log"), Record("log.b", b"2", expect), Record("log.c", b"3")])

    assert isinstance(outcomes[-2], WrongRevision)
    assert await bus.get_last("LOG", "log.b") is None
    assert (await bus.stream_info("LOG")).messages == 31


async def test_a_held_expectation_inside_a_batch_is_kept(bus: Bus) -> None:
    first = await bus.publish("log.a", b"1")
    expect = {"Nats-Expected-Last-Subject-Sequence": str(first.seq)}

    outcomes = await bus.publish_batch([Record("log.a", b"2", expect), *padding("log")])

    assert not [outcome for outcome in outcomes if isinstance(outcome, BusError)]
    assert bus.stats.batches_refused == 0


async def test_ttl_is_kept_in_a_batch(bus: Bus) -> None:
    await bus.publish_batch([Record(f"first.{n}", b"x", None, None, 30) for n in range(30)])

    stored = await bus.get_last("FIRST", "first.1")
    assert stored is not None
    assert stored.headers["Nats-TTL"] == "30s"


async def test_batch_headers_of_the_bus_are_not_shown_to_readers(bus: Bus) -> None:
    await bus.publish_batch([Record(f"log.{n}", b"x", {"mine": "1"}) for n in range(30)])

    async for stored in bus.read("LOG"):
        assert not [name for name in stored.headers if name.startswith("Nats-Batch")]
        assert stored.headers["mine"] == "1"


async def test_streams_without_batches_take_concurrent_records_singly(bus: Bus) -> None:
    acks = await asyncio.gather(*(bus.publish(f"plain.{n}", b"x") for n in range(50)))

    assert sorted(ack.seq for ack in acks) == list(range(1, 51))
    assert bus.stats.writes == 50


async def test_a_batch_reaches_a_stream_that_sources_it(bus: Bus) -> None:
    await bus.publish_batch([Record(f"first.{n}", b"x") for n in range(30)])

    async def there() -> bool:
        return (await bus.stream_info("WORK")).messages == 30

    await eventually(there)
    found = [stored async for stored in bus.read("WORK")]
    assert {stored.subject for stored in found} == {f"first.{n}" for n in range(30)}


async def test_publishing_faster_than_the_queue_allows_is_refused_at_once(bus: Bus) -> None:
    outcomes = await bus.publish_batch([Record("hints.a", b"") for _ in range(100_001)])

    refused = [outcome for outcome in outcomes if isinstance(outcome, BusError)]
    assert [error.code for error in refused] == ["bus_unavailable"]
    assert refused[0].retryable
