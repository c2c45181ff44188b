"""Callers of a simulation: calls of every kind, repeated and resumed as the SDK does, and what they were told.

A map's order and bookkeeping are the SDK's own (`squall.mapping.MapSession`); its threads and sockets are not.
"""

from __future__ import annotations

import asyncio
import json
import queue
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulation.actors import HttpRequest, SimGateway
from tests.simulation.loop import Process, SimLoop

from squall.errors import NotFoundError, RequestSizeError, SquallError
from squall.http_api.protocol import FrameKind, frames
from squall.ids import new_call_id
from squall.mapping import MapSession

if TYPE_CHECKING:
    from tests.simulation.world import World

PATIENCE_S, LONG_PATIENCE_S = 12.0, 60.0
"""A request without any answer for so long is given up and repeated; the SDK waits longer."""


class Broken(Exception):
    """The connection broke, or nothing came."""


@dataclass(slots=True, eq=False)
class Asked:
    """One call and everything its caller knows of it."""

    call: str
    kind: str
    function: str
    inputs: int = 1
    ordered: bool = True
    plan: dict[str, Any] = field(default_factory=dict)
    sent_at: float = 0.0
    acked: set[int] = field(default_factory=set)
    """Inputs whose acceptance was acknowledged."""
    told: dict[int, set[bytes]] = field(default_factory=dict)
    """By input: the results that the caller was given; more than one is a lie."""
    cancel_sent_at: float = 1e9
    """When the request that was acknowledged in the end was sent."""
    cancel_acked_at: float | None = None
    ended: bool = False
    yielded: list[int] = field(default_factory=list)
    """Indices of a map's results in the order in which the user gets them."""


class MapBookkeeping(MapSession):
    """The caller's side of the SDK's map without its threads."""

    def __init__(self, order: bool) -> None:
        self._order = order
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._seen = bytearray()
        self._waiting: dict[int, frames.Frame] = {}
        self._next = 0
        self._files = 0
        self.submitted = self.finished = 0
        self.exhausted = False

    def _progress(self, finished: bool) -> None:
        pass

    def submitted_one(self) -> int:
        """An input is on its way; its index."""
        self.submitted += 1
        self._seen.append(0)
        return self.submitted - 1


class Caller:
    """One program that makes calls."""

    def __init__(self, world: World, name: str, rng: random.Random) -> None:
        self.world = world
        self.loop: SimLoop = world.loop
        self.rng = rng
        self.process = Process(world.loop, name)
        self._patience_s = LONG_PATIENCE_S if world.options.crossed else PATIENCE_S

    # ------------------------------------------------------------------ HTTP

    async def http(
        self,
        route: Callable[[SimGateway], Any],
        call: str,
        headers: dict[bytes, bytes] | None = None,
        body: bytes = b"",
        query: bytes = b"",
        on_part: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        """One request to some gateway. Raises `Broken`, or what the gateway says."""
        slot = self.world.some_gateway(self.rng)
        gateway = slot.handle.gateway if slot is not None else None
        if slot is None or gateway is None:
            raise Broken
        done: asyncio.Future[tuple[int, bytes]] = self.loop.create_future()
        gone: asyncio.Future[None] = self.loop.create_future()
        parts: list[bytes] = []
        seen = [0, self.loop.time()]

        def part(status: int, data: bytes) -> None:
            self._later(got, status, data)

        def got(status: int, data: bytes) -> None:
            seen[0], seen[1] = status, self.loop.time()
            if on_part is not None:
                on_part(data)
            else:
                parts.append(data)

        def ended(error: SquallError | None) -> None:
            self._later(over, error)

        def over(error: SquallError | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result((int(seen[0]), b"".join(parts)))

        def broken() -> None:
            if not done.done():
                done.set_exception(Broken())

        request = HttpRequest(headers or {}, body, query, part, ended, gone)
        open_requests = slot.requests
        open_requests[request_key := object()] = lambda: self._later(broken)
        slot.process.call_at(
            self.loop.time() + self.world.network.takes(),
            lambda: slot.process.start(gateway.request(route(gateway), call, request)),
        )
        timer = self.process.call_at(self.loop.time() + self._patience_s, self._impatient, seen, done, broken)
        try:
            return await done
        finally:
            timer.cancel()
            open_requests.pop(request_key, None)
            if not gone.done():
                slot.process.call(lambda: gone.done() or gone.set_result(None))

    def _impatient(self, seen: list[float], done: asyncio.Future[Any], broken: Callable[[], None]) -> None:
        if done.done():
            return
        if self.loop.time() - seen[1] >= self._patience_s - 0.01:
            broken()
        else:
            self.process.call_at(seen[1] + self._patience_s, self._impatient, seen, done, broken)

    def _later(self, work: Callable[..., None], *args: object) -> None:
        self.process.call_at(self.loop.time() + 0.0003, work, *args)

    async def _pause(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.05, 0.4))

    def _headers(self, asked: Asked) -> dict[bytes, bytes]:
        return {
            b"squall-call": asked.call.encode(),
            b"squall-function": f"{self.world.app}/{asked.function}".encode(),
            b"squall-kind": asked.kind.encode(),
        }

    # ------------------------------------------------------------------ one input

    async def call(self, asked: Asked) -> None:
        """`remote`: with its result. `spawn`: until it is accepted; its result is asked for afterwards."""
        body = json.dumps(asked.plan).encode()
        # As long as the SDK's: the request that carries the reply's address is the one that a late reply can reach.
        patient = b"wait=45" if self.world.options.crossed else b"wait=8"
        waits = patient if asked.kind == "remote" else b""
        headers = self._headers(asked)
        while not asked.ended:
            try:
                if asked.acked:
                    status, answer = await self.http(lambda g: g.result, asked.call, query=b"wait=8")
                else:
                    status, answer = await self.http(lambda g: g.post, "", headers, body, waits)
            except Broken:
                await self._pause()
                continue
            except NotFoundError:
                self.world.violation(f"{asked.call} was acknowledged and is not known")
                return
            except SquallError as error:
                if not error.retryable:
                    self.world.violation(f"{asked.call}: {error!r}")
                    return
                await self._pause()
                continue
            if not asked.acked:
                self.world.note("acknowledged", asked.call)
            asked.acked.add(0)
            if status == 200:
                self.told(asked, answer)
                asked.ended = True
            elif asked.kind == "spawn":
                await asyncio.sleep(self.rng.uniform(0.05, 1.0))

    def told(self, asked: Asked, answer: bytes) -> None:
        """A result frame."""
        for frame in frames.Decoder().feed(answer):
            if frame.kind == FrameKind.RESULT:
                self._given(asked, frame)

    def _given(self, asked: Asked, frame: frames.Frame) -> None:
        index = int(frame.meta["index"])
        essence = json.dumps([frame.meta["outcome"], frame.meta["attempt"]]).encode() + frame.payload
        asked.told.setdefault(index, set()).add(essence)

    async def cancel(self, asked: Asked) -> None:
        """Until it is acknowledged."""
        while True:
            known, asked.cancel_sent_at = bool(asked.acked), self.loop.time()
            try:
                await self._cancel_once(asked.call)
            except Broken:
                await self._pause()
            except NotFoundError:
                if known:
                    self.world.violation(f"{asked.call} was acknowledged and cannot be cancelled: it is not known")
                return
            except SquallError:
                await self._pause()
            else:
                asked.cancel_acked_at = self.loop.time()
                self.world.note("cancel acknowledged", asked.call)
                return

    async def _cancel_once(self, call: str) -> None:
        def route(gateway: SimGateway) -> Any:
            async def handle(exchange: Any, call: str) -> None:
                await gateway.cancel(call)

            return handle

        await self.http(route, call)

    # ------------------------------------------------------------------ maps

    async def map(self, asked: Asked, order: bool, chunk: int) -> None:
        """All inputs up in chunks, results as they come, in order if that was asked for."""
        session = MapBookkeeping(order)
        reading: asyncio.Task[Any] | None = None
        sent = 0
        while sent < asked.inputs:
            given = [session.submitted_one() for _ in range(min(chunk, asked.inputs - sent))]
            sent += len(given)
            if not await self._post_inputs(asked, given):
                return
            asked.acked.update(given)
            if reading is None:
                reading = self.process.start(self._read_results(asked, session))
        session.exhausted = True
        while not session.done:
            await asyncio.sleep(0.1)
            for frame in session.take():
                asked.yielded.append(int(frame.meta["index"]))
            if asked.cancel_acked_at is not None and self.loop.time() > asked.cancel_acked_at + 60:
                break
        asked.ended = True
        if reading is not None:
            reading.cancel()

    async def _post_inputs(self, asked: Asked, indices: list[int]) -> bool:
        """In one request, or in several if they are more than a pool may take at once."""
        try:
            return await self._post_chunk(asked, indices)
        except RequestSizeError:
            half = len(indices) // 2
            return await self._post_inputs(asked, indices[:half]) and await self._post_inputs(asked, indices[half:])

    async def _post_chunk(self, asked: Asked, indices: list[int]) -> bool:
        body = b"".join(
            frames.encode(FrameKind.INPUT, {"index": index}, json.dumps(asked.plan).encode()) for index in indices
        )
        while True:
            try:
                await self.http(lambda g: g.post_inputs, asked.call, self._headers(asked), body)
            except Broken:
                await self._pause()
            except RequestSizeError:
                raise
            except SquallError as error:
                if not error.retryable:
                    self.world.violation(f"{asked.call}: {error!r}")
                    return False
                await self._pause()
            else:
                return True

    async def _read_results(self, asked: Asked, session: MapBookkeeping) -> None:
        cursor = 0
        while not asked.ended:
            decoder = frames.Decoder()

            def part(data: bytes) -> None:
                nonlocal cursor
                found = [f for f in decoder.feed(data) if f.kind == FrameKind.RESULT]  # noqa: B023
                for frame in found:
                    cursor = max(cursor, int(frame.meta["cursor"]))
                    self._given(asked, frame)
                if found:
                    session._arrived.put(found)

            try:
                await self.http(lambda g: g.get_results, asked.call, query=b"cursor=%d" % cursor, on_part=part)
            except (Broken, SquallError):
                pass
            if self.world.options.crossed:
                cursor = 0  # what was given already is given again, and must not be yielded again
            await self._pause()

    def new_call(self) -> str:
        return new_call_id(self.world.topology.shards)
