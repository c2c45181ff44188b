"""Generators: items to the caller as they are yielded, with credit back to the agent, and the result at the end.

A stream outlives a broken connection for a while: the caller sends the same call again and goes on where it was. If it
does not come back the call is cancelled, since nobody can take what it yields.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from squall.errors import DataLossError, NotFoundError, ServiceError, SquallError
from squall.http_api.protocol import FrameKind, frames
from squall.spec import Outcome
from squall_bus import Message
from squall_bus.subscribing import Subscription
from squall_contracts import subjects
from squall_contracts.calls import CallResult, ItemsTaken, ItemYielded
from squall_gateway.accept import Acceptor, Input
from squall_gateway.answers import FRAMES, Headers, error_frame, keepalive_frame, result_frame
from squall_gateway.call_headers import CallHeaders
from squall_gateway.cancels import Cancels
from squall_gateway.edge import Exchange
from squall_gateway.feeds import Feed
from squall_gateway.metrics import Requests
from squall_gateway.policy.item_order import Give, ItemOrder, Lost, Restart, Skip
from squall_gateway.results import Results
from squall_gateway.targets import Target
from squall_gateway.waiting import Waiting
from squall_gateway.waits import NoResult, Wait, Waits
from squall_service.telemetry import log

RESUME_S = 20.0
"""How long a caller may be away before its generator is cancelled."""
CREDIT_EVERY = 32
"""Items between two credits; an eighth of the agent's window."""
LAST_ITEMS_S = 2.0
"""Items are sent before the result; on several bus servers they may still arrive after it."""


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How a stream is written to its caller."""

    headers: Headers
    keepalive: Callable[[str], bytes]
    """From the reason why the call waits."""
    on_error: Callable[[SquallError], bytes]
    of: Callable[[AsyncGenerator[bytes, None]], AsyncGenerator[bytes, None]]
    """What becomes of the frames."""


AS_FRAMES = StreamForm((FRAMES,), keepalive_frame, error_frame, lambda stream: stream)
"""For the SDK."""


class ItemStream:
    """The items and the result of one generator call, from the bus to whoever reads them."""

    def __init__(
        self,
        call: str,
        target: Target,
        wait: Wait,
        send: Callable[[str, bytes], None],
        region: str,
        *,
        named: Callable[[Sequence[str | None]], Awaitable[None]],
    ) -> None:
        self.call = call
        self.pool = target.pool.pool
        self.wait = wait
        self._workspace = target.function.workspace
        self._named = named
        """Told of blobs before the caller is."""
        self._blobs: list[str] = []
        self.attached = 0
        """Counts the connections that took it over: only the last one reads."""
        self._send = send
        self._credit = subjects.credit(region, call)
        self._order = ItemOrder()
        self._ready: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._credited = 0
        self._lost: Lost | None = None
        self._subscription: Subscription | None = None
        wait.future.add_done_callback(lambda _: self._arrived.set())

    @property
    def key(self) -> tuple[str, str]:
        """By which it is found again: workspace and call."""
        return self._workspace, self.call

    def opened(self, subscription: Subscription) -> None:
        """Items arrive from now on."""
        self._subscription = subscription

    async def close(self) -> None:
        """No more items."""
        if self._subscription is not None:
            await self._subscription.close()
        await self.wait.close()

    # ------------------------------------------------------------------ from the bus

    def on_item(self, message: Message) -> None:
        """One item, in whatever order and however often it comes."""
        item = ItemYielded.decode(message.data)
        if item.workspace not in ("", self._workspace):
            return  # of a call that has the same id in another workspace
        decision = self._order.on_item(item.attempt, item.seq)
        if isinstance(decision, Restart):
            self._ready.clear()
            self._ready.append(frames.encode(FrameKind.RESTARTED, {"attempt": item.attempt}))
            self._credited, self._lost = 0, None
            decision = self._order.on_item(item.attempt, item.seq)
        match decision:
            case Give():
                self._ready.append(item_frame(item))
                if item.blob is not None:
                    self._blobs.append(item.blob)
            case Lost() as lost:
                self._lost = self._lost or lost
            case Skip() | Restart():
                return
        self._arrived.set()

    # ------------------------------------------------------------------ to the caller

    def attach(self) -> int:
        """A connection reads from here on; the one before it, if any, ends. A number that says which one it is."""
        self.attached += 1
        self._arrived.set()
        return self.attached

    async def frames(self, mine: int) -> AsyncGenerator[bytes, None]:
        """Everything for the caller. Raises `DataLossError` when items are missing."""
        async with aclosing(self._items(mine)) as items:
            async for frame in items:
                await self._tell_blobs()
                yield frame
        outcome = self.wait.future.result() if self.attached == mine else NoResult.GONE
        if isinstance(outcome, NoResult):
            return
        record = CallResult.decode(outcome)
        await self._last_items(record)
        self._blobs += [record.blob] if record.blob is not None else []
        await self._tell_blobs()
        while self._ready:
            yield self._ready.popleft()
        yield result_frame(record)

    async def _tell_blobs(self) -> None:
        if self._blobs:
            blobs, self._blobs = self._blobs, []
            await self._named(blobs)

    async def _items(self, mine: int) -> AsyncGenerator[bytes, None]:
        """Items as they come, until the result is there or another connection took over."""
        while self.attached == mine:
            while self._ready:
                yield self._ready.popleft()
                self._give_credit(CREDIT_EVERY if self._ready else 1)
            if self._lost is not None:
                raise lost_items(self.call, self._lost)
            if self.wait.future.done():
                return
            self._arrived.clear()
            await self._arrived.wait()

    async def _last_items(self, record: CallResult) -> None:
        if record.outcome != Outcome.SUCCEEDED.value or record.items is None:
            return
        try:
            async with asyncio.timeout(LAST_ITEMS_S):
                while self._order.missing(record.attempt, record.items) and self._lost is None:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass
        lost = self._lost or self._order.missing(record.attempt, record.items)
        if lost is not None:
            raise lost_items(self.call, lost)

    def _give_credit(self, every: int) -> None:
        """The agent lets the generator go on; told in numbers that only grow, so that a lost message heals."""
        taken = self._order.next_seq - len(self._ready)
        if taken - self._credited >= every:
            self._credited = taken
            self._send(self._credit, ItemsTaken(self.call, self._order.attempt, taken).encode())


@dataclass(slots=True)
class Generators:
    """Open item streams of this gateway."""

    acceptor: Acceptor
    waits: Waits
    results: Results
    cancels: Cancels
    waiting: Waiting
    requests: Requests
    draining: asyncio.Event
    start: Callable[[Coroutine[Any, Any, None]], object]
    """Runs work in the service's task group."""
    streams: dict[tuple[str, str], ItemStream] = field(default_factory=dict)

    async def answer(
        self,
        exchange: Exchange,
        call: CallHeaders,
        target: Target,
        given: Input,
        received_ns: int,
        form: StreamForm = AS_FRAMES,
    ) -> None:
        """Accept the call, unless it is one that its caller resumes, and stream it."""
        workspace = exchange.token.workspace
        stream = self.streams.get((workspace, call.call))
        if stream is None:
            stream = await self._open(call, target, workspace)
            try:
                await self._accept(stream, call, target, given, received_ns)
            except SquallError:
                stream.wait.settle(NoResult.GONE)  # for a second connection that came in the meantime
                await self._forget(stream)
                raise
        mine = stream.attach()
        feed = Feed(exchange, self.draining)
        keepalive = lambda: form.keepalive(self.waiting.text(target.pool.pool))  # noqa: E731
        await feed.run(form.of(stream.frames(mine)), form.headers, keepalive, form.on_error)
        if stream.wait.future.done():
            await self._forget(stream)
        else:
            self.start(self._cancel_if_abandoned(stream, mine, workspace))

    async def _open(self, call: CallHeaders, target: Target, workspace: str) -> ItemStream:
        bus = self.acceptor.bus
        wait = self.waits.open(call.call, 0, workspace)
        named = partial(self.acceptor.blobs.told, workspace)
        stream = ItemStream(call.call, target, wait, bus.send, bus.topology.region, named=named)
        self.streams[stream.key] = stream
        items = subjects.items(bus.topology.region, call.call)
        stream.opened(await bus.subscribe(items, stream.on_item))
        return stream

    async def _accept(
        self, stream: ItemStream, call: CallHeaders, target: Target, given: Input, received_ns: int
    ) -> None:
        reply_to = stream.wait.reply_to
        accepted = await self.acceptor.accept(call, target, given, reply_to=reply_to, received_ns=received_ns)
        if not accepted.duplicate:
            self.requests.accepted[call.kind.value] += 1
            return
        await stream.wait.look()
        if not stream.wait.future.done() and await self._has_started(call.call, target.function.workspace):
            # Its items went to a gateway that is gone; the generator waits for credit that nobody can give.
            await self.cancels.call(call.call, target.function.workspace)
            raise ServiceError(
                f"the items of {call.call} were lost with the gateway that took it",
                fix="Iterate again.",
            )

    async def _has_started(self, call: str, workspace: str) -> bool:
        events = await self.results.events(call, 0, workspace)
        return any(event.event == "started" for event in events)

    async def _cancel_if_abandoned(self, stream: ItemStream, mine: int, workspace: str) -> None:
        await self.acceptor.clock.sleep(RESUME_S)
        if stream.attached != mine:
            return  # the caller came back
        await self._forget(stream)
        try:
            await self.cancels.call(stream.call, workspace)
        except NotFoundError:
            return
        except SquallError as error:
            log.warning("abandoned_generator_not_cancelled", call=stream.call, reason=error.message)

    async def _forget(self, stream: ItemStream) -> None:
        if self.streams.get(stream.key) is stream:
            del self.streams[stream.key]
        self.acceptor.loads.ended(stream.pool)
        await stream.close()


def item_frame(item: ItemYielded) -> bytes:
    """The ITEM frame of a yielded value."""
    meta: dict[str, Any] = {"attempt": item.attempt, "seq": item.seq, "encoding": item.encoding}
    if item.blob is not None:
        meta["blob"] = item.blob
    return frames.encode(FrameKind.ITEM, meta, item.payload)


def lost_items(call: str, lost: Lost) -> DataLossError:
    """Items that were yielded and never arrived."""
    return DataLossError(
        f"items {lost.first} to {lost.last} of {call} were lost on the way",
        fix="Iterate again; results that must survive belong in the return value of `remote` or in a file.",
    )
