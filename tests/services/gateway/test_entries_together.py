"""POST /v1/entries: operations of several threads in one request, each with an outcome of its own."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import World

from squall.http_api.protocol import FrameKind, frames
from squall.http_api.routes import Route
from squall_bus import Entry, KeyWrite, PublishUnknown
from squall_bus.kv import KeyValue
from squall_contracts.objects import QueueItem
from squall_gateway.api import entries_together
from squall_gateway.api.entries_together import TogetherRoutes
from squall_gateway.auth import create_token
from squall_gateway.dicts import Dicts
from squall_gateway.metrics import Requests
from squall_gateway.queues import Queues

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def made(http: httpx.AsyncClient, kind: str, name: str) -> str:
    return str((await http.post(f"/v1/objects/{kind}", json={"name": name})).json()["id"])


def key(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


def op(what: str, target: str, value: bytes = b"", **meta: Any) -> bytes:
    return frames.encode(FrameKind.ENTRY, {"op": what, "object": target, **meta}, value)


async def together(http: httpx.AsyncClient, *ops: bytes) -> list[Any]:
    """What was told about each, and its payload if it has one; of errors the code."""
    answer = await http.post(Route.ENTRIES, content=b"".join(ops))
    assert answer.status_code == 200, answer.text
    found = frames.Decoder().feed(answer.content)
    told = [{"error": frame.meta["error"]["code"]} if "error" in frame.meta else frame.meta for frame in found]
    return [(meta, frame.payload) if frame.payload else meta for meta, frame in zip(told, found, strict=True)]


async def test_each_operation_has_its_own_outcome_and_what_is_wrong_with_one_is_that_ones(world: World) -> None:
    state, queue = await made(world.http, "dicts", "each"), await made(world.http, "queues", "each")
    token = await create_token(world.bus, "else", "workspace", "x", now=1.0)
    theirs = await made(await world.client(str(world.http.base_url), token), "dicts", "theirs")
    put, other = {"key": key("k"), "request": "r1"}, {"key": key("other"), "request": "r2"}

    first = await together(
        world.http,
        op("put", state, b"v", **put),
        op("put", state, b"w", **other, absent=True),
        op("get", state, key=key("missing")),
        op("pop", state, key=key("missing"), request="r3"),
        op("get", theirs, key=key("k")),
        op("put", state, b"v", key="no base64", request="r4"),
        op("put", state, b"v", key=key("k"), request="not.one"),
        op("put", state, b"v", key=key("k"), request="r5", blob="0" * 64 + ":1"),
        op("get", queue, key=key("k")),
        op("nothing", state),
        op("enqueue", queue, b"1", request="r6"),
        op("enqueue", queue, b"1", request="r7", ttl=0),
        op("enqueue", queue, b"1", request="r8", partition="x" * 65),
        op("enqueue", queue, b"p", request="r9", partition="p"),
        op("take", state, request="r10"),
    )
    assert first[:4] == [{"put": True}, {"put": True}, {"found": False}, {"found": False}]
    invalid, gone = {"error": "invalid"}, {"error": "not_found"}
    assert first[4:8] == [gone, invalid, invalid, invalid]
    assert first[8:] == [gone, invalid, {"stored": 1}, invalid, invalid, {"stored": 1}, gone]

    second = await together(
        world.http,
        op("get", state, key=key("k")),
        op("pop", state, key=key("other"), request="r11"),
        op("count", theirs),
        op("length", queue),
        op("length", queue, total=True),
        op("length", queue, partition="p"),
    )
    assert second[0] == ({"found": True, "blob": None}, b"v")
    assert second[1] == ({"found": True, "blob": None}, b"w")
    assert second[2:] == [gone, {"count": 1}, {"count": 2}, {"count": 1}]

    third = await together(
        world.http,
        op("count", state),
        op("take", queue, request="r12"),
        op("take", queue, request="r13", partition="empty"),
        op("take", queue, request="r14", partition="p"),
    )
    assert third[0] == {"count": 1}
    assert third[1:] == [
        ({"taken": True, "blob": None}, b"1"),
        {"taken": False},
        ({"taken": True, "blob": None}, b"p"),
    ]


async def test_what_is_no_list_of_operations_is_refused_as_a_whole(world: World) -> None:
    whole = op("count", "di-1")
    for body in (b"", b"nothing", whole[:-1], whole * (entries_together.MAX_OPS + 1)):
        assert (await world.http.post(Route.ENTRIES, content=body)).status_code in (400, 413)
    for scope, status in (("caller", 403), ("container", 200)):
        token = await create_token(world.bus, "main", scope, "x", now=1.0)
        client = await world.client(str(world.http.base_url), token)
        assert (await client.post(Route.ENTRIES, content=whole)).status_code == status


class Writes:
    """Counts writes of several keys, and may lose the answer of the first one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, loses: bool = False) -> None:
        self.sizes: list[int] = []
        write_together = KeyValue.write_together

        async def counted(bucket: KeyValue, wanted: Sequence[KeyWrite]) -> list[int]:
            self.sizes.append(len(wanted))
            revisions = await write_together(bucket, wanted)
            if loses and len(self.sizes) == 1:
                raise PublishUnknown("no answer")
            return revisions

        monkeypatch.setattr(KeyValue, "write_together", counted)


async def test_pops_share_a_write_and_a_repeated_one_is_told_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, names = await made(world.http, "dicts", "pops"), [f"k{n}" for n in range(8)]
    puts = [op("put", state, name.encode(), key=key(name), request=name) for name in names]
    assert await together(world.http, *puts) == [{"put": True}] * 8
    pops = [op("pop", state, key=key(name), request=f"pop-{name}") for name in names]
    twice, missing = (op("pop", state, key=key(name), request="again") for name in ("k0", "missing"))
    writes = Writes(monkeypatch)

    told = await together(world.http, *pops, twice, missing)

    values = [({"found": True, "blob": None}, name.encode()) for name in names]
    assert told == [*values, {"found": False}, {"found": False}]
    assert writes.sizes == [16], "one write, each with its receipt"
    assert await together(world.http, *puts[:1]) == [{"put": True}], "a put that came twice is not made again"
    assert await together(world.http, *pops) == values, "each is told what its receipt says"
    assert await together(world.http, pops[3]) == values[3:4], "alone too"


async def test_puts_of_absent_keys_share_a_write_and_a_key_has_one_winner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = await made(world.http, "dicts", "claims")

    def claim(name: str, request: str) -> bytes:
        return op("put", state, request.encode(), key=key(name), request=request, absent=True)

    assert await together(world.http, claim("there", "r0")) == [{"put": True}]
    writes = Writes(monkeypatch)
    told = await together(world.http, *(claim(f"k{n}", f"r{n}") for n in range(6)), claim("there", "late"))
    assert told == [{"put": True}] * 6 + [{"put": False}]
    assert writes.sizes[:2] == [14, 12], "all as new ones, then those that are"

    told = await together(world.http, *(claim("contended", f"c{n}") for n in range(6)), claim("k1", "c6"))
    assert sorted(each["put"] for each in told[:6]) == [False] * 5 + [True]
    winner = told[:6].index({"put": True})
    assert told[6] == {"put": False}
    assert await together(world.http, op("get", state, key=key("contended"))) == [
        ({"found": True, "blob": None}, f"c{winner}".encode())
    ]


@pytest.mark.parametrize("what", ["pop", "put"])
async def test_a_shared_write_without_an_answer_is_found_by_each_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    state, names = await made(world.http, "dicts", f"unknown-{what}"), [f"k{n}" for n in range(4)]
    if what == "pop":
        await together(world.http, *(op("put", state, b"v", key=key(name), request=name) for name in names))
    writes = Writes(monkeypatch, loses=True)

    asked = [op(what, state, b"w", key=key(name), request=f"r-{name}", absent=what == "put") for name in names]
    told = await together(world.http, *asked)

    assert told == [({"found": True, "blob": None}, b"v") if what == "pop" else {"put": True}] * 4
    assert writes.sizes[0] == 8
    monkeypatch.undo()
    assert await together(world.http, op("count", state)) == [{"count": 0 if what == "pop" else 4}]


async def test_what_takes_too_long_keeps_nobody_waiting_and_is_to_be_sent_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, queue = await made(world.http, "dicts", "slow"), await made(world.http, "queues", "slow")
    take, stuck = Queues.take, asyncio.Event()

    async def slow(self: Queues, place: Any, most: int, wait_s: float, gone: Any, request: str) -> list[QueueItem]:
        assert wait_s == 0
        if request == "stuck":
            await stuck.wait()
        return await take(self, place, most, wait_s, gone, request)

    monkeypatch.setattr(Queues, "take", slow)
    asked = [
        op("take", queue, request="stuck"),
        op("put", state, b"v", key=key("k"), request="r1"),
        op("take", queue, request="r2"),
    ]

    assert await together(world.http, *asked) == [{"again": True}, {"put": True}, {"taken": False}]
    stuck.set()
    assert await together(world.http, asked[0]) == [{"taken": False}]


async def test_an_item_is_not_taken_for_who_left_while_others_were_slow(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, queue = await made(world.http, "dicts", "left"), await made(world.http, "queues", "left")
    assert await together(world.http, op("enqueue", queue, b"1", request="r1")) == [{"stored": 1}]
    slow, seen, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    put, outcomes = Dicts.do_apart, TogetherRoutes._outcomes

    async def slowly(self: Dicts, *given: Any) -> Any:
        slow.set()
        await seen.wait()
        return await put(self, *given)

    async def watched(self: TogetherRoutes, workspace: str, asked: Any, gone: asyncio.Event) -> Any:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(told(gone))
            found = await outcomes(self, workspace, asked, gone)
        over.set()
        return found

    async def told(gone: asyncio.Event) -> None:
        await gone.wait()
        seen.set()

    monkeypatch.setattr(entries_together, "SLOW_S", 30.0)
    monkeypatch.setattr(Dicts, "do_apart", slowly)
    monkeypatch.setattr(TogetherRoutes, "_outcomes", watched)
    asked = (op("take", queue, request="r2"), op("put", state, b"v", key=key("k"), request="r3"))
    async with asyncio.TaskGroup() as tasks:
        caller = tasks.create_task(together(world.http, *asked))
        await slow.wait()
        caller.cancel()
    await over.wait()
    monkeypatch.undo()
    assert await together(world.http, op("length", queue)) == [{"count": 1}]


async def test_operations_are_counted_as_those_that_come_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, count = list[tuple[str, int]](), Requests.count

    def heard(self: Requests, route: str, status: int) -> None:
        counted.append((route, status))
        count(self, route, status)

    monkeypatch.setattr(Requests, "count", heard)
    queue = await made(world.http, "queues", "counted")
    counted.clear()
    await together(world.http, op("enqueue", queue, b"1", request="r1"), op("get", "di-none", key=key("k")))
    assert sorted(counted) == [("/v1/dicts/*/ops", 404), ("/v1/entries", 200), ("/v1/queues/*/items", 200)]


async def test_a_request_may_have_more_pops_and_claims_than_one_write_of_the_bus_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries_together, "SLOW_S", 30.0)
    state = await made(world.http, "dicts", "many")
    names = [f"k{number}" for number in range(501)]
    claims = [op("put", state, b"1", key=key(name), request=f"c{name}", absent=True) for name in names]
    assert await together(world.http, *claims) == [{"put": True}] * 501
    assert await together(world.http, *claims) == [{"put": True}] * 501  # the same requests again
    others = [op("put", state, b"2", key=key(name), request=f"d{name}", absent=True) for name in names[:2]]
    new = [op("put", state, b"2", key=key(name), request=f"n{name}", absent=True) for name in ("new-1", "new-2")]
    assert await together(world.http, *others, *new) == [{"put": False}] * 2 + [{"put": True}] * 2

    pops = [op("pop", state, key=key(name), request=f"p{name}") for name in names]
    popped = await together(world.http, *pops)
    assert [payload for _, payload in popped] == [b"1"] * 501
    assert await together(world.http, *pops) == popped
    assert await together(world.http, *claims[:3]) == [{"put": True}] * 3  # told from their receipts


async def test_keys_that_are_new_are_set_without_a_look_unless_one_was_there_just_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, looks, numbers = await made(world.http, "dicts", "new"), list[str](), itertools.count()
    last_known = KeyValue.last_known

    async def counted(self: KeyValue, keys: Sequence[str]) -> list[tuple[int, Entry | None]]:
        looks.extend(keys)
        return await last_known(self, keys)

    def claim(*names: str) -> list[bytes]:
        number = next(numbers)
        return [op("put", state, b"1", key=key(name), request=f"{name}-{number}", absent=True) for name in names]

    monkeypatch.setattr(KeyValue, "last_known", counted)
    assert await together(world.http, *claim("a", "b")) == [{"put": True}] * 2
    assert looks == []
    assert await together(world.http, *claim("b", "c")) == [{"put": False}, {"put": True}]
    assert len(looks) == 2
    assert await together(world.http, *claim("d", "e")) == [{"put": True}] * 2
    assert len(looks) == 4
