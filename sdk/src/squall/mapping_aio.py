"""Maps for `async for`: the user's iterables are consumed on the user's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from squall import blocking
from squall.mapping import MapSession

if TYPE_CHECKING:
    from squall.function import Function

INPUTS_A_TURN = 32
"""Inputs taken from a plain iterable before other tasks of the loop get their turn."""


async def inputs(iterables: Sequence[Any], starred: bool) -> AsyncIterator[tuple[Any, ...]]:
    """Argument tuples from plain or asynchronous iterables, until the shortest ends."""
    if starred and len(iterables) != 1:
        raise TypeError(f"starmap() takes one iterable of argument sequences, got {len(iterables)}")
    iterators = [_stepper(iterable) for iterable in iterables]
    while iterators:
        items = []
        for step in iterators:
            item = await step()
            if item is _END:
                return
            items.append(item)
        yield tuple(items[0]) if starred else tuple(items)


async def grouped(items: AsyncIterator[tuple[Any, ...]], size: int = INPUTS_A_TURN) -> AsyncIterator[list[Any]]:
    """Lists of up to `size` items: each is one turn of a worker thread."""
    some: list[Any] = []
    async for item in items:
        some.append(item)
        if len(some) >= size:
            yield some
            some = []
    if some:
        yield some


_END: Any = object()


def _stepper(iterable: Any) -> Any:
    if hasattr(iterable, "__aiter__"):
        asynchronous = iterable.__aiter__()

        async def step() -> Any:
            try:
                return await asynchronous.__anext__()
            except StopAsyncIteration:
                return _END

        return step
    plain = iter(iterable)

    async def plain_step() -> Any:
        return next(plain, _END)

    return plain_step


class _Signals:
    """What the tasks of one map wait for. Made on the loop: before Python 3.10 an event belongs to one at once."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.arrival = asyncio.Event()
        self.room = asyncio.Event()


class _LoopSession(MapSession):
    """A map whose caller waits on events of its loop."""

    def __init__(self, function: Function, kwargs: Mapping[str, Any], order: bool, signals: _Signals) -> None:
        super().__init__(function, kwargs, order)
        self._loop, self.arrival, self.room = signals.loop, signals.arrival, signals.room

    def on_arrival(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self.arrival.set)
        except RuntimeError:
            pass  # the loop ended before the map


async def results(
    function: Function,
    arguments: AsyncIterator[tuple[Any, ...]],
    kwargs: Mapping[str, Any],
    order_outputs: bool,
    return_exceptions: bool,
) -> AsyncIterator[Any]:
    """The results as they may be handed out; inputs are taken meanwhile."""
    signals = _Signals()
    session = await blocking.run(lambda: _LoopSession(function, kwargs, order_outputs, signals))
    feeder = signals.loop.create_task(_feed(session, arguments))
    feeder.add_done_callback(lambda _: session.arrival.set())
    failure: Optional[BaseException] = None
    try:
        while True:
            session.arrival.clear()
            for frame in session.take():
                yield await _value(session, frame, return_exceptions)
            session.room.set()
            if feeder.done():
                feeder.result()  # raises what the user's iterable raised
                if session.done:
                    return
            await session.arrival.wait()
    except BaseException as error:
        failure = error
        raise
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)
        await blocking.run(lambda: session.close(failure))


async def _feed(session: _LoopSession, arguments: AsyncIterator[tuple[Any, ...]]) -> None:
    async for args in arguments:
        while session.full:
            session.room.clear()
            await session.room.wait()
        session.submit(args)
        if session.submitted % INPUTS_A_TURN == 0:
            await asyncio.sleep(0)
    session.exhausted = True


async def _value(session: MapSession, frame: Any, return_exceptions: bool) -> Any:
    if frame.meta.get("blob"):
        return await blocking.run(lambda: session.value(frame, return_exceptions))
    return session.value(frame, return_exceptions)
