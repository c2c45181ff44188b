"""Passages: a web request on its way through, from the grant of its slot to its return. No task waits for one.

Owns what happens at the end of the answer and at that of the code, and the time that both may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.pool import Pool
from squall_gpu_agent.web.lines import Line, Lines
from squall_runner.frames import HEADER, MAX_FRAME_BYTES, BadFrame, Web, encode
from squall_service.telemetry import log

TIMEOUT_SLACK_S = 1.0
"""The gateway ends a request that takes too long, and says so; this is for one that does not."""
GRANT_WAITS_S = 0.02
"""For the answer: of a short request they leave together, and the gateway wakes up once."""
_LAST = (Web.END, Web.FAIL)


class Caller(Protocol):
    """A gateway's connection, as a passage uses it."""

    def close(self) -> None:
        """After what was written."""

    def write(self, data: bytes) -> None:
        """Send, if the gateway is there."""

    def again(self) -> None:
        """It has its whole answer, and may ask for another slot."""


@dataclass(frozen=True, slots=True)
class Loan:
    """A slot that a request has."""

    pool: Pool
    container: PooledContainer
    timeout_s: float
    """0: none."""
    grace_s: float
    """For a container to end a request that was told to end."""

    def give_back(self) -> None:
        """Its code has ended."""
        self.pool.returned(self.container)


class Passage:
    """One request whose connections end with it."""

    __slots__ = ("_caller", "_line", "_loan", "_timer")

    def __init__(self, caller: Caller, line: Line, loan: Loan) -> None:
        self._caller, self._line, self._loan = caller, line, loan
        self._timer: asyncio.TimerHandle | None = None
        if loan.timeout_s:
            self._timer = asyncio.get_running_loop().call_later(loan.timeout_s + TIMEOUT_SLACK_S, self._too_late)
        line.on_closed = self._closed

    def _closed(self) -> None:
        """The line has gone: the request has ended in the container, or the container has."""
        self._stop_timers()
        self._caller.close()
        self._loan.give_back()

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _too_late(self) -> None:
        """The container has so long to end the request by itself."""
        self._caller.close()
        self._line.finish()
        self._timer = asyncio.get_running_loop().call_later(self._loan.grace_s, self._kill)

    def _kill(self) -> None:
        container, timeout_s = self._loan.container, self._loan.timeout_s
        log.warning("web_request_timed_out", container=container.id, timeout_s=timeout_s)
        container.container.kill(f"killed: a web request took longer than its timeout of {timeout_s:g} s")


class KeptPassage(Passage):
    """A whole request: both connections are used again. Nothing that comes after the end of its answer reaches the
    gateway, whose connection may be another tenant's next."""

    __slots__ = ("_answered", "_ends", "_grant_timer", "_granted_at", "_lines", "_owes_grant")

    def __init__(self, caller: Caller, line: Line, loan: Loan, lines: Lines, *, soon: bool) -> None:
        super().__init__(caller, line, loan)
        loop = asyncio.get_running_loop()
        self._lines = lines
        self._ends = FrameEnds()
        self._answered = False
        self._granted_at = loop.time()
        self._grant_timer: asyncio.TimerHandle | None = None
        self._owes_grant = True
        """GRANTED is still to be said."""
        line.on_data = self._on_data
        if soon:
            self._say_granted()
        else:
            self._grant_timer = loop.call_later(GRANT_WAITS_S, self._say_granted)

    def _granted(self) -> bytes:
        self._owes_grant = False
        if self._grant_timer is not None:
            self._grant_timer.cancel()
        ago_us = round((asyncio.get_running_loop().time() - self._granted_at) * 1e6)
        return encode(Web.GRANTED, {"container": self._loan.container.id, "kept": True, "ago_us": ago_us})

    def _say_granted(self) -> None:
        if self._owes_grant:
            self._caller.write(self._granted())

    def _on_data(self, data: bytes) -> None:
        """Of the container."""
        try:
            for kind, end in self._ends.within(data):
                if not self._answered:
                    if kind in _LAST:
                        self._pass_on(data[:end])
                        self._answer_complete()
                elif kind == Web.DONE and end == len(data):
                    self._done()
                    return
                else:
                    raise BadFrame("something comes after the end of an answer")
        except BadFrame as error:
            log.warning("web_line_broken", container=self._loan.container.id, reason=str(error))
            self._line.close()
            return
        if not self._answered:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        self._caller.write(self._granted() + data if self._owes_grant else data)

    def _answer_complete(self) -> None:
        self._answered = True
        self._line.part()
        self._caller.again()

    def _done(self) -> None:
        """The code has ended too."""
        self._stop_timers()
        self._line.on_closed = self._line.on_data = None
        self._lines.back(self._loan.container.id, self._line)
        self._loan.give_back()

    def _closed(self) -> None:
        self._stop_timers()
        if not self._answered:
            self._say_granted()  # so that the gateway knows who broke
            self._caller.close()
        self._loan.give_back()

    def _stop_timers(self) -> None:
        super()._stop_timers()
        if self._grant_timer is not None:
            self._grant_timer.cancel()

    def _too_late(self) -> None:
        if self._answered:  # what the caller asks for by now is another request
            self._line.finish()
            self._timer = asyncio.get_running_loop().call_later(self._loan.grace_s, self._kill)
        else:
            super()._too_late()


class FrameEnds:
    """Where frames end in bytes that pass by. Keeps none of them."""

    __slots__ = ("_head", "_kind", "_left")

    def __init__(self) -> None:
        self._head = b""
        self._kind = 0
        self._left = 0
        """Bytes of the current frame that are still to come."""

    def within(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Kind and end of each frame that ends in `data`. Raises `BadFrame`."""
        at, size = 0, len(data)
        while at < size:
            if not self._left:
                wanted = HEADER.size - len(self._head)
                if size - at < wanted:
                    self._head += data[at:]
                    return
                head, self._head = self._head + data[at : at + wanted], b""
                at += wanted
                self._kind, meta_bytes, payload_bytes = HEADER.unpack(head)
                self._left = meta_bytes + payload_bytes
                if self._left > MAX_FRAME_BYTES:
                    raise BadFrame(f"a frame announces {self._left} bytes, limit {MAX_FRAME_BYTES}")
            step = min(self._left, size - at)
            at += step
            self._left -= step
            if not self._left:
                yield self._kind, at
