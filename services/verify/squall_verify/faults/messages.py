"""Faults of messages: garbage, repeats, giants and late calls, published with the credentials of the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from random import Random

from squall.ids import new_call_id
from squall_bus import Bus, BusError, PublishUnknown, Refused, Stored
from squall_contracts import subjects
from squall_contracts.calls import DEADLINE_HEADER, REQUEUED_HEADER, CallRequested
from squall_contracts.envelope import BadMessage
from squall_contracts.nodes import NODES
from squall_service.clock import SystemClock
from squall_verify.faults.registry import Given, Hit, NotPossible, Site, fault

GIANT_BYTES = 700 * 1024
SERVER_HEADERS = ("Nats-",)
LOOKED_AT = 200
TTL_S = 7200.0
_CLOCK = SystemClock()


def which_and_seed(dice: Random) -> dict[str, float | str]:
    """Who is meant, and what the garbage looks like."""
    return {"which": dice.random(), "garbage": dice.randbytes(dice.choice([0, 1, 17, 300])).hex()}


async def some_call(bus: Bus, given: Given) -> tuple[Stored, CallRequested]:
    """A recently accepted, readable call."""
    found: list[tuple[Stored, CallRequested]] = []
    for shard in range(bus.topology.shards):
        stream = subjects.journal_stream(bus.topology.region, shard)
        last = (await bus.stream_info(stream)).last_seq
        async for stored in bus.read(stream, start_seq=max(1, last - LOOKED_AT)):
            with suppress(BadMessage):
                found.append((stored, CallRequested.decode(stored.data)))
    if not found:
        raise NotPossible("no call was accepted yet")
    found.sort(key=lambda each: each[0].stored_at)
    return found[int(float(given["which"]) * len(found))]


def own_headers(stored: Stored) -> dict[str, str]:
    """Without what the server added."""
    return {name: value for name, value in stored.headers.items() if not name.startswith(SERVER_HEADERS)}


def _publishing(work: Callable[[Bus, Given], Awaitable[Hit]]) -> Callable[[Site, Given], Iterator[Hit]]:
    def inject(site: Site, given: Given) -> Iterator[Hit]:
        yield site.on_bus(lambda bus: work(bus, given))

    return inject


async def _garbage_call(bus: Bus, given: Given) -> Hit:
    _, like = await some_call(bus, given)
    call = new_call_id(bus.topology.shards)
    subject = subjects.call(bus.topology.region, like.pool, call, 0)
    headers = {DEADLINE_HEADER: f"{_CLOCK.now() + 3600:.3f}"}
    await bus.publish(subject, bytes.fromhex(str(given["garbage"])), headers=headers, ttl_s=TTL_S)
    return Hit("JOURNAL", detail=call)


async def _late_call(bus: Bus, given: Given) -> Hit:
    stored, like = await some_call(bus, given)
    call = new_call_id(bus.topology.shards)
    past = _CLOCK.now() - 1
    late = replace(like, call=call, index=0, deadline=past, accepted_at=past - 1, reply_to=None, blob=like.blob)
    headers = {**own_headers(stored), DEADLINE_HEADER: f"{past:.3f}"}
    await bus.publish(
        subjects.call(bus.topology.region, like.pool, call, 0), late.encode(), headers=headers, ttl_s=TTL_S
    )
    return Hit("JOURNAL", detail=call)


async def _repeated_call(bus: Bus, given: Given) -> Hit:
    """As the reconciler would, without its care: whether or not the call is queued, running or over."""
    stored, like = await some_call(bus, given)
    subject = subjects.requeue(bus.topology.region, like.pool, like.call, like.index)
    for _ in range(2):
        await bus.publish(subject, stored.data, headers={**own_headers(stored), REQUEUED_HEADER: "1"}, ttl_s=TTL_S)
    return Hit("WORK", detail=f"{like.call}:{like.index}")


async def _garbage_control(bus: Bus, given: Given) -> Hit:
    _, like = await some_call(bus, given)
    garbage, region = bytes.fromhex(str(given["garbage"])), bus.topology.region
    shard = int(like.call[-2:])
    wanted = [
        subjects.cancel(region, like.pool),
        subjects.stats(region, "local-0"),
        subjects.items(region, like.call),
        subjects.credit(region, like.call),
        subjects.done(region, like.workspace, like.call, like.index),
        f"{subjects.ARRIVED}.{region}.{subjects.shard_token(shard)}.{like.pool}.{like.call}.{like.index}",
        *([like.reply_to] if like.reply_to else []),
    ]
    for subject in wanted:
        bus.send(subject, garbage)
    await bus.flush(5.0)
    with suppress(BusError):
        await bus.kv(NODES).put("nobody", garbage)
    return Hit("control subjects", detail=f"{len(wanted)} subjects, {len(garbage)} bytes")


async def _giant(bus: Bus, given: Given) -> Hit:
    _, like = await some_call(bus, given)
    call = new_call_id(bus.topology.shards)
    giant = bytes(GIANT_BYTES)
    refused = "stored"
    try:
        await bus.publish(subjects.call(bus.topology.region, like.pool, call, 0), giant, deadline_s=2.0)
    except (Refused, PublishUnknown, BusError) as error:
        refused = type(error).__name__
    bus.send(subjects.cancel(bus.topology.region, like.pool), giant)
    bus.send(subjects.items(bus.topology.region, like.call), giant)
    await bus.flush(5.0)
    await asyncio.sleep(0)
    return Hit("JOURNAL and control subjects", detail=f"{GIANT_BYTES} bytes; the journal: {refused}")


fault(
    "garbage-call",
    about="a JOURNAL record that is no call",
    heals="it ends failed (invalid_input)",
    weight=0.7,
    parameters=which_and_seed,
)(contextmanager(_publishing(_garbage_call)))
fault(
    "late-call",
    about="a JOURNAL record whose deadline has passed",
    heals="it ends expired",
    weight=0.7,
    parameters=which_and_seed,
)(contextmanager(_publishing(_late_call)))
fault(
    "repeated-call",
    about="an accepted call is put into WORK twice more",
    heals="whoever comes second is thrown away",
    weight=0.7,
    parameters=which_and_seed,
)(contextmanager(_publishing(_repeated_call)))
fault(
    "garbage-control",
    about="random bytes on cancels, statistics, items, arrivals, results and replies",
    heals="nobody understands them",
    weight=0.7,
    parameters=which_and_seed,
)(contextmanager(_publishing(_garbage_control)))
fault(
    "giant-message",
    about="700 KiB onto JOURNAL, cancels and items",
    heals="the stream refuses it",
    weight=0.4,
    parameters=which_and_seed,
)(contextmanager(_publishing(_giant)))
