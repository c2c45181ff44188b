"""A client that leaves: what is done for it ends at once, whatever it waits for. Costs no task."""

from __future__ import annotations

import asyncio
from types import TracebackType

from squall_gateway.bodies import ClientGone
from squall_gateway.http_cycle import Cycle
from squall_gateway.waits import Receive


class Leaving:
    """Context manager of one request. Raises `ClientGone` out of the block when the client goes."""

    def __init__(self, receive: Receive) -> None:
        self._cycle = found if isinstance(found := getattr(receive, "__self__", None), Cycle) else None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._interrupted = False

    def __enter__(self) -> Leaving:
        if self._cycle is not None:
            if self._cycle.disconnected:
                raise ClientGone
            self._cycle.on_left = self._left
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        task, self._task = self._task, None
        if self._cycle is not None:
            self._cycle.on_left = None
        # As `asyncio.timeout` does: a cancellation of somebody else's, at the same time, must not be swallowed.
        ours = self._interrupted and task is not None and task.uncancel() <= self._cancelling
        if ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientGone

    def _left(self) -> None:
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()
