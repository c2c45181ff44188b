"""The lifespan of an ASGI app: it starts after the enter hooks and stops before the exit hooks."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Optional


class LifespanFailed(Exception):
    """The app said that it cannot start."""


class Lifespan:
    """Runs beside the requests of its app."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        """What requests find in `scope["state"]`."""
        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answered: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task: Optional[asyncio.Task[None]] = None

    async def start(self) -> None:
        """Returns when the app is ready. Apps that know no lifespan are ready at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        answer = await self._ask("lifespan.startup")
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            raise LifespanFailed(answer.get("message") or "lifespan.startup.failed")

    async def stop(self) -> None:
        """Returns when the app has cleaned up."""
        if self._task is not None and not self._task.done():
            await self._ask("lifespan.shutdown")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self.app(scope, self._asked.get, self._answered.put)

    async def _ask(self, kind: str) -> Optional[dict[str, Any]]:
        assert self._task is not None
        self._asked.put_nowait({"type": kind})
        answer = asyncio.get_running_loop().create_task(self._answered.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        self._task.exception()  # an app without lifespan raises, or returns: either is fine
        return None
