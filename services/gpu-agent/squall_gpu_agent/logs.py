"""Logs: what containers print, tied to call and container, in batches.

Owns the batching (20 ms or 64 KiB) and the promise that the lines of a call are on the bus before its result, unless
that would hold the result up. Never waits otherwise; text is passed on as it is, carriage returns included.
"""

from __future__ import annotations

import asyncio
from typing import Any

from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.logs import LogLines
from squall_gpu_agent.backend import Log, OnLog
from squall_gpu_agent.identity import Identity
from squall_service.clock import Clock

FLUSH_S = 0.02
MAX_BATCH_CHARS = 64 * 1024
MAX_LINE_CHARS = 32 * 1024
BURST_CHARS = 16 * 1024 * 1024
CHARS_PER_S = 5 * 1024 * 1024
"""Of one container. The bus's buffer holds 20,000 batches; unlimited output would fill the agent's memory first."""
RESULT_WAITS_S = 0.01
"""How long a result waits for the lines before it."""
END_WAITS_S = 0.5
"""How long the end of a container waits for its last lines: whoever sees its claim gone looks for no more of them."""
NO_CALL = "-"
Key = tuple[str, str, int]


class Logs:
    """The lines of all containers of this node."""

    def __init__(self, bus: Bus, identity: Identity, clock: Clock) -> None:
        self._bus = bus
        self._identity = identity
        self._clock = clock
        self._batches: dict[Key, _Batch] = {}
        self._told: dict[tuple[str, int], float] = {}
        """When lines of a call were given to the bus last."""
        self._told_by: dict[str, float] = {}
        """The same of a container."""
        self._timer: asyncio.TimerHandle | None = None

    def of(self, app: str, pool: str, function: str, container: str) -> OnLog:
        """What a backend calls with the text of one container."""

        limit = OutputLimit(self._clock)

        def on_log(log: Log) -> None:
            text = limit.passes(log.text)
            if not text:
                return
            call = log.call or NO_CALL
            index = log.index if log.call and log.index is not None else -1
            key = (container, call, index)
            batch = self._batches.get(key)
            if batch is None:
                head = LogLines(
                    app=app, pool=pool, function=function, container=container, call=call, index=index, lines=[]
                )
                batch = self._batches[key] = _Batch(head)
            for start in range(0, len(text), MAX_LINE_CHARS):
                batch.add([self._clock.now(), log.stream, text[start : start + MAX_LINE_CHARS]])
                if batch.chars >= MAX_BATCH_CHARS:
                    self._publish(key)
                    batch = self._batches.setdefault(key, _Batch(batch.head))
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

        return on_log

    def _flush(self) -> None:
        self._timer = None
        for key in list(self._batches):
            self._publish(key)
        horizon = self._clock.monotonic() - 1.0
        for told in (self._told, self._told_by):
            _forget(told, horizon)

    async def flush_call(self, call: str, index: int) -> None:
        """Bring the lines of an input to the bus before its result goes there."""
        for key in [key for key in self._batches if key[1] == call and key[2] == index]:
            self._publish(key)
        if self._told.pop((call, index), None) is not None:
            await self._bus.flush(RESULT_WAITS_S)

    async def flush_container(self, container: str) -> None:
        """Bring the last lines of a container to the bus before its claim goes."""
        for key in [key for key in self._batches if key[0] == container]:
            self._publish(key)
        if self._told_by.pop(container, None) is not None:
            await self._bus.flush(END_WAITS_S)

    def _publish(self, key: Key) -> None:
        batch = self._batches.pop(key)
        if not batch.lines:
            return
        head = batch.head
        message = LogLines(**{**head.__dict__, "lines": batch.lines})
        shard = subjects.shard_of_name(head.app, self._identity.shards)
        subject = subjects.log(self._identity.region, shard, head.app, head.pool, head.call)
        self._bus.publish_soon(subject, message.encode())
        self._told_by[head.container] = now = self._clock.monotonic()
        if head.call != NO_CALL:
            self._told[head.call, head.index] = now


def _forget(told: dict[Any, float], horizon: float) -> None:
    for key in [key for key, at in told.items() if at < horizon]:
        del told[key]


class OutputLimit:
    """What one container may print: a burst, then so much a second. The rest is dropped, and that is said."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left = float(BURST_CHARS)
        self._at = clock.monotonic()
        self._dropped = 0

    def passes(self, text: str) -> str:
        """The text that may go on; "" when it is over the limit."""
        now = self._clock.monotonic()
        self._left = min(BURST_CHARS, self._left + (now - self._at) * CHARS_PER_S)
        self._at = now
        if len(text) > self._left:
            self._dropped += len(text)
            return ""
        self._left -= len(text)
        if not self._dropped:
            return text
        dropped, self._dropped = self._dropped, 0
        return f"[squall: {dropped} characters of output were dropped here]\n{text}"


class _Batch:
    """Lines of one container and call that wait to be published."""

    __slots__ = ("chars", "head", "lines")

    def __init__(self, head: LogLines) -> None:
        self.head = head
        self.lines: list[list[object]] = []
        self.chars = 0

    def add(self, line: list[object]) -> None:
        """One more."""
        self.lines.append(line)
        self.chars += len(str(line[2]))
