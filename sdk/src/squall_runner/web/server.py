"""The web functions of a container: their apps, their lifespans, and the lines that are offered to the agent.

Owns how many lines wait, and which app a request goes to. One request on a line: `http`, `websocket` and `port`.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Callable, Optional

from squall_runner import context, tracing
from squall_runner.execute import Ground
from squall_runner.frames import Frame, WebLine
from squall_runner.settings import Settings
from squall_runner.web import apps
from squall_runner.web.http import HttpExchange
from squall_runner.web.lifespan import Lifespan
from squall_runner.web.line import Line
from squall_runner.web.port import Port
from squall_runner.web.websocket import WebSocketExchange

READY_LINES = 4
"""Lines that wait: as many requests begin at the same moment without waiting for a connection."""
AGAIN_S = 0.2
_URL = "unix:"


class WebServer:
    """Everything that this container serves."""

    def __init__(
        self,
        functions: dict[str, tuple[Optional[Callable[..., Any]], dict[str, Any]]],
        settings: Settings,
        ground: Ground,
    ) -> None:
        self._functions = functions
        self._settings = settings
        self._ground = ground
        self._hello = b"%s%s %s\n" % (
            WebLine.HELLO,
            os.environ["SQUALL_CONTAINER_ID"].encode(),
            settings.web_key.encode(),
        )
        self._path = os.environ["SQUALL_SERVER_URL"][len(_URL) :]
        self._apps: dict[str, Any] = {}
        self._lifespans: list[Lifespan] = []
        self._ready: set[Line] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = min(settings.max_inputs, READY_LINES)
        self._closing = False

    async def open(self) -> None:
        """Make the apps, start their lifespans, offer the first lines. Raises what user code raises."""
        for name, (function, declared) in self._functions.items():
            app = await apps.build(function, declared, self._settings.max_inputs)
            self._apps[name] = app
            if not isinstance(app, Port) and declared["kind"] != "wsgi":
                lifespan = Lifespan(app)
                await lifespan.start()
                self._lifespans.append(lifespan)
        for _ in range(self._wanted):
            await self._dial()

    async def close(self) -> None:
        """End the lifespans. Nothing runs any more."""
        self._closing = True
        for lifespan in reversed(self._lifespans):
            await lifespan.stop()

    # --- lines ---

    async def _dial(self) -> None:
        line = Line(self._hello, self._on_open)
        await asyncio.get_running_loop().create_unix_connection(lambda: line, self._path)
        self._ready.add(line)
        line.on_lost = self._on_lost

    def _on_lost(self, line: Line) -> None:
        if line not in self._ready:
            return
        self._ready.discard(line)
        if len(self._ready) < self._wanted:  # the agent did not want it; or it is gone, and this process will be soon
            self._start(self._dial_again())

    async def _dial_again(self) -> None:
        while not self._closing:
            await asyncio.sleep(AGAIN_S)
            try:
                await self._dial()
                return
            except OSError:
                continue

    def _on_open(self, line: Line, frame: Frame) -> None:
        """A request has come on a line."""
        self._ready.discard(line)
        if len(self._ready) < self._wanted:
            self._start(self._replace())
        self._start(self._serve(line, frame))

    async def _replace(self) -> None:
        try:
            await self._dial()
        except OSError:
            await self._dial_again()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- requests ---

    async def _serve(self, line: Line, frame: Frame) -> None:
        meta = frame.meta
        app = self._apps[meta["method"]]
        state = next((span.state for span in self._lifespans if span.app is app), {})
        current = context.CurrentInput(meta["id"], 0, 0, meta["traceparent"])
        keep = False
        try:
            with tracing.parent(meta["traceparent"], self._ground.alone), context.running(current):
                if isinstance(app, Port):
                    await app.serve(line)
                elif meta["type"] == "websocket":
                    await WebSocketExchange(line, meta["scope"], state).run(app)
                else:
                    exchange = HttpExchange(line, meta["scope"], state)
                    await exchange.run(app)
                    keep = meta.get("keep") is True and exchange.answered
        finally:
            self._ground.capture.flush()
            following = await line.again() if keep else None
            if following is not None:
                self._ready.add(following)
            else:
                line.close()
