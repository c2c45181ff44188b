"""POST /v1/entries: single operations on dicts and queues that several threads of a client make at the same time. A
plain function, see `squall_gateway.edge`.

Each operation does what its own route does (`squall_gateway.api.entries`), is counted under it, and has an outcome of
its own. None keeps the others waiting for long: nothing is waited for here, and what takes too long is to be sent
alone. Items are taken last, so that none waits for others on its way to a caller who may leave meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from squall.errors import InternalError, InvalidError, RequestSizeError, SquallError, to_wire
from squall.http_api.protocol import FrameKind, frames
from squall.http_api.routes import Route
from squall_gateway.answers import public, send_whole
from squall_gateway.api.entries import (
    HEADERS,
    MAX_BODY_BYTES,
    check_partition,
    check_ttl,
    item_blob,
    item_of,
    request_of,
)
from squall_gateway.bodies import leaving, whole
from squall_gateway.dicts import Dicts, Op, Outcome, op_of, told_blobs
from squall_gateway.edge import Exchange
from squall_gateway.metrics import Requests
from squall_gateway.objects import Objects
from squall_gateway.queues import Queues
from squall_service.telemetry import log

MAX_OPS = 1000
SLOW_S = 1.0
"""What is not done by then goes alone."""
SLOW_COUNT_S = 0.1
"""Likewise of counts, which read as many records as there are."""
AGAIN = Outcome({"again": True})
_DICT = frozenset({"get", "put", "pop"})
_ROUTES = {
    **dict.fromkeys(_DICT, Route.DICT_OPS.format(object="*")),
    "count": Route.DICT_COUNT.format(object="*"),
    "enqueue": Route.QUEUE_ITEMS.format(object="*"),
    "take": Route.QUEUE_TAKEN.format(object="*"),
    "length": Route.QUEUE_COUNT.format(object="*"),
}
"""How an operation is counted."""

Each = Outcome | BaseException


class Work(NamedTuple):
    """One thing to do for some of the operations."""

    places: list[int]
    done: Coroutine[Any, Any, list[Each]]
    slow_s: float = 0.0
    """0: `SLOW_S`."""


class Asked(NamedTuple):
    """One operation."""

    what: str
    object_id: str
    frame: frames.Frame

    def text(self, name: str) -> str:
        """A text in its meta; empty if there is none. Raises `InvalidError`."""
        value = self.frame.meta.get(name) or ""
        if not isinstance(value, str):
            raise InvalidError(f"{name} must be text, got {value!r:.100}")
        return value


@dataclass(frozen=True, slots=True)
class TogetherRoutes:
    """Runs operations side by side."""

    objects: Objects
    dicts: Dicts
    queues: Queues
    requests: Requests

    async def post(self, exchange: Exchange, _: str) -> None:
        """All operations of the body."""
        asked = read_asked(await whole(exchange.receive, MAX_BODY_BYTES))
        async with leaving(exchange.receive) as gone:
            outcomes = await self._outcomes(exchange.token.workspace, asked, gone)
        parts = []
        for each, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                error = _told(outcome)
                outcome = Outcome({"error": to_wire(error)})
                self.requests.count(_ROUTES.get(each.what, Route.ENTRIES), error.http_status)
            elif outcome is not AGAIN:
                self.requests.count(_ROUTES[each.what], 200)
            parts.append(frames.encode(FrameKind.ENTRY, outcome.meta, outcome.value))
        await send_whole(exchange.send, 200, b"".join(parts), HEADERS)

    async def _outcomes(self, workspace: str, asked: list[Asked], gone: asyncio.Event) -> list[Each]:
        """One for each, in order."""
        outcomes: list[Each] = [AGAIN] * len(asked)

        async def settle(work: Work) -> None:
            try:
                async with asyncio.timeout(work.slow_s or SLOW_S):
                    found = await work.done
            except TimeoutError:
                return
            for place, outcome in zip(work.places, found, strict=True):
                outcomes[place] = outcome

        async with asyncio.TaskGroup() as tasks:
            for work in self._works(workspace, asked):
                tasks.create_task(settle(work))
        async with asyncio.TaskGroup() as tasks:
            for place, each in enumerate(asked):
                if each.what == "take":
                    tasks.create_task(settle(Work([place], _alone(self._take(workspace, each, gone)))))
        return outcomes

    def _works(self, workspace: str, asked: list[Asked]) -> Iterator[Work]:
        """What is to be done, but for takes: operations on one dict share reads and writes, and those who ask for the
        same number share one look."""
        dicts: defaultdict[str, list[int]] = defaultdict(list)
        counts: defaultdict[tuple[str, str, str, bool], list[int]] = defaultdict(list)
        for place, each in enumerate(asked):
            match each.what:
                case "get" | "put" | "pop":
                    dicts[each.object_id].append(place)
                case "count" | "length":
                    meta = each.frame.meta
                    partition, total = str(meta.get("partition") or ""), meta.get("total") is True
                    counts[each.what, each.object_id, partition, total].append(place)
                case "enqueue":
                    yield Work([place], _alone(self._enqueue(workspace, each)))
                case "take":
                    pass
                case _:
                    yield Work([place], _alone(_unknown(each.what)))
        for places in dicts.values():
            yield Work(places, self._on_dict(workspace, [asked[place] for place in places]))
        for places in counts.values():
            yield Work(places, self._count(workspace, [asked[place] for place in places]), SLOW_COUNT_S)

    async def _on_dict(self, workspace: str, asked: list[Asked]) -> list[Each]:
        """Operations on one dict."""
        try:
            return await self._done(workspace, asked)
        except Exception as error:  # noqa: BLE001 — told to all of them
            return [error] * len(asked)

    async def _done(self, workspace: str, asked: list[Asked]) -> list[Each]:
        await self.objects.of_id("dicts", asked[0].object_id, workspace)
        ops = [_op(each.frame) for each in asked]
        done = iter(await self.dicts.do_apart(workspace, asked[0].object_id, [op for op in ops if isinstance(op, Op)]))
        return [op if isinstance(op, SquallError) else next(done) for op in ops]

    async def _enqueue(self, workspace: str, asked: Asked) -> Outcome:
        item, ttl_s = item_of(asked.frame), check_ttl(asked.frame.meta.get("ttl", 86400))
        place = await self._place(workspace, asked)
        if item.blob is not None:
            await self.dicts.blobs.of(workspace).require(*item_blob(item.blob))
        request = request_of(asked.text("request"))
        return Outcome({"stored": await self.queues.put(place, [item], ttl_s=ttl_s, wait_s=0, request=request)})

    async def _take(self, workspace: str, asked: Asked, gone: asyncio.Event) -> Outcome:
        request, place = request_of(asked.text("request")), await self._place(workspace, asked)
        taken = await self.queues.take(place, 1, 0, gone, request)
        if not taken:
            return Outcome({"taken": False})
        told = Outcome({"taken": True, "blob": taken[0].blob}, taken[0].value)
        await told_blobs(self.dicts.blobs, workspace, [told])
        return told

    async def _count(self, workspace: str, asked: list[Asked]) -> list[Each]:
        """One look, after all of these have asked."""
        first = asked[0]
        total = first.frame.meta.get("total") is True
        return (await _alone(self._counted(workspace, first, total=total))) * len(asked)

    async def _counted(self, workspace: str, asked: Asked, *, total: bool) -> Outcome:
        if asked.what == "count":
            await self.objects.of_id("dicts", asked.object_id, workspace)
            return Outcome({"count": await self.dicts.count(workspace, asked.object_id)})
        *place, partition = await self._place(workspace, asked)
        return Outcome({"count": await self.queues.count(place[0], place[1], None if total else partition)})

    async def _place(self, workspace: str, asked: Asked) -> tuple[str, str, str]:
        partition = check_partition(asked.text("partition"))
        await self.objects.of_id("queues", asked.object_id, workspace)
        return workspace, asked.object_id, partition


def read_asked(body: bytes) -> list[Asked]:
    """The operations in a body; what is wrong with one is told later. Raises `InvalidError`, `RequestSizeError`."""
    decoder = frames.Decoder()
    try:
        found = decoder.feed(body)
    except frames.BadFrame as error:
        raise InvalidError(f"the body is not frames of operations: {error}") from error
    if not found or decoder.pending_bytes:
        raise InvalidError("the body is not whole frames of operations")
    if len(found) > MAX_OPS:
        raise RequestSizeError(f"more than {MAX_OPS} operations in one request", fix="Send fewer at once.")
    return [Asked(str(frame.meta.get("op", "")), str(frame.meta.get("object", "")), frame) for frame in found]


async def _alone(work: Awaitable[Outcome]) -> list[Each]:
    """Its outcome, or what went wrong, as a list of one."""
    try:
        return [await work]
    except Exception as error:  # noqa: BLE001 — told to who asked; and logged, if nobody has promised it
        return [error]


async def _unknown(what: str) -> Outcome:
    raise InvalidError(f"there is no operation {what!r:.100}")


def _op(frame: frames.Frame) -> Op | SquallError:
    try:
        return op_of(frame)
    except SquallError as error:
        return error
    except (ValueError, TypeError, KeyError) as error:
        return InvalidError(f"the frame is not an operation: {error}")


def _told(error: BaseException) -> SquallError:
    if isinstance(error, SquallError):
        return public(error)
    log.error("entry_failed", error=error)
    return InternalError("the operation failed")
