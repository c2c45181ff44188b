"""The forms of a function for many inputs: `map` and `starmap`, `for_each`, `spawn_map`, each with its `aio`.

Owns what they take and refuse; how the inputs get there is in `mapping`, `mapping_aio` and `bulk`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from squall.blocking import refuse_in_loop, running_loop

if TYPE_CHECKING:
    from squall.bulk import BulkSpawn
    from squall.call import FunctionCall
    from squall.function import Function
    from squall.mapping import MapResults

NO_KWARGS: dict[str, Any] = {}


class Map:
    """`f.map` and `f.starmap`. Call it for an iterable, or its `aio` for `async for`."""

    __slots__ = ("_function", "_starred")

    def __init__(self, function: Function, starred: bool) -> None:
        self._function, self._starred = function, starred

    @property
    def _name(self) -> str:
        return "Function.starmap" if self._starred else "Function.map"

    def __call__(
        self,
        *iterables: Iterable[Any],
        kwargs: dict[str, Any] = NO_KWARGS,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: Optional[bool] = None,
    ) -> MapResults:
        """Inputs are taken from the iterables while results are taken: at most 1,000 inputs are under way."""
        _warn_of_wrapping(wrap_returned_exceptions)
        if running_loop() is not None:
            refuse_in_loop(self._name)
        from squall import mapping

        return mapping.MapResults(self._function, self._inputs(iterables), kwargs, order_outputs, return_exceptions)

    def aio(
        self,
        *iterables: Any,
        kwargs: dict[str, Any] = NO_KWARGS,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        wrap_returned_exceptions: Optional[bool] = None,
    ) -> AsyncIterator[Any]:
        """The same for `async for`; the iterables may be asynchronous too."""
        _warn_of_wrapping(wrap_returned_exceptions)
        from squall import mapping_aio

        inputs = mapping_aio.inputs(iterables, self._starred)
        return mapping_aio.results(self._function, inputs, kwargs, order_outputs, return_exceptions)

    def _inputs(self, iterables: Sequence[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
        if not self._starred:
            return zip(*iterables)
        if len(iterables) != 1:
            raise TypeError(f"starmap() takes one iterable of argument sequences, got {len(iterables)}")
        return (tuple(item) for item in iterables[0])


def _warn_of_wrapping(wrap_returned_exceptions: Optional[bool]) -> None:
    """`False` is what always holds; `True` is what programs wrote before there was anything to choose."""
    if wrap_returned_exceptions:
        from squall.old_names import warn_renamed

        warn_renamed("`wrap_returned_exceptions=` is without effect: exceptions are given as they were raised")


class ForEach:
    """`f.for_each`. Call it, or await its `aio`."""

    __slots__ = ("_function",)

    def __init__(self, function: Function) -> None:
        self._function = function

    def __call__(
        self, *iterables: Iterable[Any], kwargs: dict[str, Any] = NO_KWARGS, ignore_exceptions: bool = False
    ) -> None:
        """Wait until all inputs ended. The first failure is raised unless failures are ignored."""
        if running_loop() is not None:
            refuse_in_loop("Function.for_each")
        for _ in self._function.map(
            *iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions
        ):
            pass

    async def aio(self, *iterables: Any, kwargs: dict[str, Any] = NO_KWARGS, ignore_exceptions: bool = False) -> None:
        """The same without blocking the event loop."""
        results = self._function.map.aio(
            *iterables, kwargs=kwargs, order_outputs=False, return_exceptions=ignore_exceptions
        )
        async for _ in results:
            pass


class SpawnMap:
    """`f.spawn_map` and `f.experimental_spawn_map`. Call it, or await its `aio`."""

    __slots__ = ("_function", "_keep")

    def __init__(self, function: Function, keep: bool) -> None:
        self._function, self._keep = function, keep

    @property
    def _name(self) -> str:
        return "Function.experimental_spawn_map" if self._keep else "Function.spawn_map"

    def __call__(self, *iterables: Iterable[Any], kwargs: dict[str, Any] = NO_KWARGS) -> Optional[FunctionCall]:
        """All inputs belong to one call. They are accepted when this returns, and go on without this program."""
        if running_loop() is not None:
            refuse_in_loop(self._name)
        from squall import bulk

        session = bulk.BulkSpawn(self._function, kwargs)
        try:
            for args in zip(*iterables):
                session.add(args)
            session.finish()
        except BaseException as error:
            session.give_up(error)
            raise
        return self._made(session)

    async def aio(self, *iterables: Any, kwargs: dict[str, Any] = NO_KWARGS) -> Optional[FunctionCall]:
        """The same without blocking the event loop; the iterables may be asynchronous too."""
        from squall import bulk, mapping_aio
        from squall.blocking import run

        session = await run(lambda: bulk.BulkSpawn(self._function, kwargs))
        try:
            async for some in mapping_aio.grouped(mapping_aio.inputs(iterables, False)):
                await run(partial(session.add_all, some))
            await run(session.finish)
        except BaseException as error:
            session.give_up(error)
            raise
        return self._made(session)

    def _made(self, session: BulkSpawn) -> Optional[FunctionCall]:
        from squall.call import FunctionCall

        return FunctionCall(session.call, session.target.client) if self._keep else None
