"""/v1/dicts and /v1/queues: what is in them. Plain functions as on the call path, see `squall_gateway.edge`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from squall.errors import InvalidError, RequestSizeError
from squall.http_api.protocol import FRAMES_CONTENT_TYPE, FrameKind, frames
from squall.http_api.routes import Route
from squall.spec import INLINE_LIMIT_BYTES
from squall_bus import Stored
from squall_contracts.objects import QueueItem
from squall_gateway.answers import send_json, send_whole
from squall_gateway.bodies import integer, leaving, number, query_values, wait_s, whole
from squall_gateway.call_headers import blob_size, check_blob_ref
from squall_gateway.dicts import REQUEST, Dicts, Outcome, read_ops, told_blobs
from squall_gateway.edge import Exchange, Handler
from squall_gateway.objects import Objects
from squall_gateway.queues import Queues

MAX_BODY_BYTES = 32 << 20
MAX_ITEMS = 1000
MAX_ITEM_BYTES = 1 << 20
MIN_TTL_S, MAX_TTL_S = 1.0, 7 * 24 * 3600.0
PAGE = 200
HEADERS = ((b"content-type", FRAMES_CONTENT_TYPE.encode()),)


@dataclass(frozen=True, slots=True)
class EntryRoutes:
    """Reads requests, and writes answers."""

    objects: Objects
    dicts: Dicts
    queues: Queues

    def hot(self) -> dict[tuple[str, str], Handler]:
        """By method and path."""
        return {
            (method, route.format(object="*")): handler
            for method, route, handler in (
                ("POST", Route.DICT_OPS, self.dict_ops),
                ("GET", Route.DICT_ITEMS, self.dict_items),
                ("GET", Route.DICT_COUNT, self.dict_count),
                ("DELETE", Route.DICT_COUNT, self.dict_clear),
                ("POST", Route.QUEUE_ITEMS, self.queue_put),
                ("GET", Route.QUEUE_ITEMS, self.queue_items),
                ("POST", Route.QUEUE_TAKEN, self.queue_take),
                ("GET", Route.QUEUE_COUNT, self.queue_count),
                ("DELETE", Route.QUEUE_COUNT, self.queue_clear),
            )
        }

    # ------------------------------------------------------------------ dicts

    async def dict_ops(self, exchange: Exchange, object_id: str) -> None:
        """Operations on keys."""
        ops = read_ops(await whole(exchange.receive, MAX_BODY_BYTES))
        workspace = await self._of("dicts", exchange, object_id)
        await _answer(exchange, await self.dicts.do(workspace, object_id, ops))

    async def dict_items(self, exchange: Exchange, object_id: str) -> None:
        """Some of all keys, with their values or without."""
        asked = query_values(exchange.query)
        workspace = await self._of("dicts", exchange, object_id)
        keys_only = asked.get("keys") == "1"
        found, after = await self.dicts.page(workspace, object_id, integer(asked, "after", 0), keys_only=keys_only)
        await _answer(exchange, [*found, Outcome({"next": after})])

    async def dict_count(self, exchange: Exchange, object_id: str) -> None:
        """How many keys there are."""
        workspace = await self._of("dicts", exchange, object_id)
        await send_json(exchange.send, 200, {"count": await self.dicts.count(workspace, object_id)})

    async def dict_clear(self, exchange: Exchange, object_id: str) -> None:
        """Remove all keys."""
        await self.dicts.clear(await self._of("dicts", exchange, object_id), object_id)
        await send_json(exchange.send, 200, {"count": 0})

    # ------------------------------------------------------------------ queues

    async def queue_put(self, exchange: Exchange, object_id: str) -> None:
        """Items into a partition, in order."""
        asked = query_values(exchange.query)
        ttl_s, request = check_ttl(number(asked, "ttl", 86400.0)), request_of(asked.get("request", ""))
        items = _items(await whole(exchange.receive, MAX_BODY_BYTES))
        place = await self._place(exchange, object_id, asked)
        for item in items:
            if item.blob is not None:
                await self.dicts.blobs.of(place[0]).require(*item_blob(item.blob))
        stored = await self.queues.put(place, items, ttl_s=ttl_s, wait_s=wait_s(asked), request=request)
        await send_json(exchange.send, 200, {"stored": stored})

    async def queue_take(self, exchange: Exchange, object_id: str) -> None:
        """Items out of a partition."""
        asked = query_values(exchange.query)
        most = integer(asked, "most", 1)
        if not 0 < most <= MAX_ITEMS:
            raise InvalidError(f"most must be 1 to {MAX_ITEMS}")
        request = request_of(asked.get("request", ""))
        place = await self._place(exchange, object_id, asked)
        async with leaving(exchange.receive) as gone:
            taken = await self.queues.take(place, most, wait_s(asked), gone, request)
        told = [Outcome({"blob": item.blob}, item.value) for item in taken]
        await told_blobs(self.dicts.blobs, place[0], told)
        await _answer(exchange, told)

    async def queue_items(self, exchange: Exchange, object_id: str) -> None:
        """Some items of a partition, which stay there."""
        asked = query_values(exchange.query)
        place = await self._place(exchange, object_id, asked)
        found, after = await self.queues.page(place, integer(asked, "after", 0), PAGE)
        last = found[-1].seq if found else integer(asked, "after", 0)
        told = [_taken(stored) for stored in found]
        await told_blobs(self.dicts.blobs, place[0], told)
        await _answer(exchange, [*told, Outcome({"next": after, "at": last})])

    async def queue_count(self, exchange: Exchange, object_id: str) -> None:
        """How many items there are."""
        asked = query_values(exchange.query)
        workspace, _, partition = await self._place(exchange, object_id, asked)
        counted = await self.queues.count(workspace, object_id, None if asked.get("total") == "1" else partition)
        await send_json(exchange.send, 200, {"count": counted})

    async def queue_clear(self, exchange: Exchange, object_id: str) -> None:
        """Remove items."""
        asked = query_values(exchange.query)
        workspace, _, partition = await self._place(exchange, object_id, asked)
        await self.queues.clear(workspace, object_id, None if asked.get("total") == "1" else partition)
        await send_json(exchange.send, 200, {"count": 0})

    # ------------------------------------------------------------------ both

    async def _of(self, kind: str, exchange: Exchange, object_id: str) -> str:
        """The workspace, if the object is there. Raises `NotFoundError`."""
        return (await self.objects.of_id(kind, object_id, exchange.token.workspace)).workspace

    async def _place(self, exchange: Exchange, object_id: str, asked: dict[str, str]) -> tuple[str, str, str]:
        partition = check_partition(asked.get("partition", ""))
        return await self._of("queues", exchange, object_id), object_id, partition


async def _answer(exchange: Exchange, outcomes: Iterable[Outcome]) -> None:
    body = b"".join(frames.encode(FrameKind.ENTRY, outcome.meta, outcome.value) for outcome in outcomes)
    await send_whole(exchange.send, 200, body, HEADERS)


def check_partition(partition: str) -> str:
    """The name of a partition. Raises `InvalidError`."""
    if len(partition.encode()) > 64:
        raise InvalidError("the name of a partition has 64 bytes at most")
    return partition


def check_ttl(ttl_s: object) -> float:
    """How long items live. Raises `InvalidError`."""
    if not isinstance(ttl_s, int | float) or not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise InvalidError(f"a partition's items live {MIN_TTL_S:g} to {MAX_TTL_S:g} seconds, not {ttl_s!r:.40}")
    return ttl_s


def request_of(request: str) -> str:
    """By which a repeated request is known. Raises `InvalidError`."""
    if not REQUEST.fullmatch(request):
        raise InvalidError("request must be letters, digits and hyphens, 64 at most")
    return request


def _taken(stored: Stored) -> Outcome:
    item = QueueItem.decode(stored.data)
    return Outcome({"blob": item.blob}, item.value)


def _items(body: bytes) -> list[QueueItem]:
    """The items in a body. Raises `InvalidError`, `RequestSizeError`."""
    try:
        decoder = frames.Decoder()
        found = decoder.feed(body)
    except frames.BadFrame as error:
        raise InvalidError(f"the body is not frames of items: {error}") from error
    if not found or decoder.pending_bytes:
        raise InvalidError("the body is not whole frames of items")
    if len(found) > MAX_ITEMS:
        raise RequestSizeError(f"more than {MAX_ITEMS} items in one request", fix="Send fewer at once.")
    return [item_of(frame) for frame in found]


def item_of(frame: frames.Frame) -> QueueItem:
    """The item in a frame. Raises `InvalidError`, `RequestSizeError`."""
    blob = frame.meta.get("blob")
    if blob is not None and not isinstance(blob, str):
        raise InvalidError("the blob of an item must be text")
    if len(frame.payload) > INLINE_LIMIT_BYTES:
        raise RequestSizeError(f"an inline item has {len(frame.payload)} bytes, more than {INLINE_LIMIT_BYTES}")
    return QueueItem(bytes(frame.payload), blob)


def item_blob(ref: str) -> tuple[str, int]:
    """The blob that an item is in. Raises `InvalidError`, `RequestSizeError`."""
    sha256, size = check_blob_ref(ref).partition(":")[0], blob_size(ref)
    if size > MAX_ITEM_BYTES:
        raise RequestSizeError(f"an item has {size} bytes, more than {MAX_ITEM_BYTES}", fix="Use a Dict or a Volume.")
    return sha256, size
