"""Maps for `async for`: the user's iterables are consumed on the user's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from squall import blocking
from squall.mapping import MapSession

if TYPE_CHECKING:
    from squall.function import Function


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


class _LoopSession(MapSession):
    """A map whose caller waits on an event of its loop."""

    def __init__(
        self, function: Function, kwargs: Mapping[str, Any], order: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(function, kwargs, order)
        self._loop = loop
        self.arrival = asyncio.Event()

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
    """The results as they may be handed out; inputs are taken while results arrive."""
    loop = asyncio.get_running_loop()
    session: Optional[_LoopSession] = None
    failure: Optional[BaseException] = None
    step: Optional[asyncio.Task[Any]] = None
    try:
        more = True
        while more or (session is not None and not session.done):
            if more and step is None and not (session is not None and session.full):
                step = loop.create_task(_next(arguments))
            if session is not None:
                session.arrival.clear()
                for frame in session.take():
                    yield await _value(session, frame, return_exceptions)
            if step is None and session is not None and not session.done and not (more and not session.full):
                await session.arrival.wait()
                continue
            if step is not None:
                args = await _either(step, session)
                if args is _NOT_YET:
                    continue
                step = None
                if args is _END:
                    more = False
                    if session is not None:
                        session.exhausted = True
                    continue
                if session is None:
                    session = await blocking.run(lambda: _LoopSession(function, kwargs, order_outputs, loop))
                session.submit(args)
    except BaseException as error:
        failure = error
        raise
    finally:
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
        if session is not None:
            closing, ended = session, failure
            await blocking.run(lambda: closing.close(ended))


_NOT_YET: Any = object()


async def _next(arguments: AsyncIterator[tuple[Any, ...]]) -> Any:
    try:
        return await arguments.__anext__()
    except StopAsyncIteration:
        return _END


async def _either(step: asyncio.Task[Any], session: Optional[_LoopSession]) -> Any:
    """The next input, or `_NOT_YET` if a result came first."""
    if session is None or step.done():
        return await step
    arrival = asyncio.get_running_loop().create_task(session.arrival.wait())
    try:
        await asyncio.wait((step, arrival), return_when=asyncio.FIRST_COMPLETED)
    finally:
        arrival.cancel()
        await asyncio.gather(arrival, return_exceptions=True)
    return step.result() if step.done() else _NOT_YET


async def _value(session: MapSession, frame: Any, return_exceptions: bool) -> Any:
    if frame.meta.get("blob"):
        return await blocking.run(lambda: session.value(frame, return_exceptions))
    return session.value(frame, return_exceptions)
