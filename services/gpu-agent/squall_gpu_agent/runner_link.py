"""The agent's end of the socket to one runner: inputs out; outputs, items and logs in.

Owns the conversation with one runner and what is known about its running inputs. Trusts nothing that comes back: a
runner that breaks the protocol ends its link, never the agent. Starts and kills no process: the backend does.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from squall_gpu_agent.backend import End, Exit, InputRequest, Item, Log, NotBegun, OnBegin, OnItem, OnLog, Output
from squall_gpu_agent.line import Given, Line
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.runner_words import (
    Payload,
    Ready,
    StartError,
    failed_of,
    input_meta,
    key_of,
    output_of,
    parse_started,
)
from squall_runner.frames import BadFrame, Decoder, Frame, FromRunner, ToRunner, encode

MAX_READ_BYTES = 1 << 18
BUNCH_FROM = 4
"""Inputs that a runner still has when it was heard, from which on it is left alone for a moment."""
BUNCH_S = 0.001
"""Each time that we are woken costs as much as handling an input: eight no-ops take a runner half of this."""
_ENDS = frozenset({FromRunner.OUTPUT, FromRunner.FAILED})
_PAYLOAD_FILE = re.compile(r"payload-\d{1,20}-\d{1,20}\Z")


class RunnerLink(asyncio.Protocol):
    """One runner. Made by a backend around its end of the socketpair; `Container.run` and friends delegate to it."""

    def __init__(self, container_id: str, scratch: Path, results: Path, on_log: OnLog) -> None:
        """`results` is where payload files go that the runner wrote to `scratch`; on the same file system."""
        self._container = container_id
        self._scratch = scratch
        self._results = results
        self._on_log = on_log
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest: socket.socket | None = None
        """A second descriptor of the same socket, see `_hear_rest`."""
        self._broken = False
        self._paused = False
        self._out: list[bytes] = []
        """Frames that leave together at the end of this turn of the loop, while the runner has something to do."""
        self._decoder = Decoder()
        self._line = Line(self._loop, self._ask_back)
        self.pipes = Pipes(self._on_pipe)
        """Descriptors 1 and 2 of the runner."""
        self._exit: Exit | None = None
        self.on_broken: Callable[[str], None] = _ignored
        """Set by the backend: called once when the runner broke the protocol; it then kills the runner."""
        self.started: asyncio.Future[Ready | StartError | None] = self._loop.create_future()
        """How the start went; None when the runner ended without a word."""
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when nothing more can come from the runner's socket."""
        self.ending = ""
        """Why the runner said that it ends by itself."""
        self._enough = False
        self._on_enough: Callable[[], None] | None = None
        self.committing = False
        """Its code has ended; what it wrote to volumes is on its way."""

    def settle(self, scratch: Path, results: Path) -> None:
        """Other folders for payload files, before the runner has started."""
        self._scratch, self._results = scratch, results

    async def open(self, sock: socket.socket, setup: Mapping[str, Any]) -> None:
        """Take over the agent's end of the socketpair and send SETUP."""
        self._rest = sock.dup()
        await self._loop.create_unix_connection(lambda: self, sock=sock)
        self._send(ToRunner.SETUP, setup)

    @property
    def running(self) -> frozenset[tuple[str, int]]:
        """Inputs that have not ended."""
        return self._line.keys

    @property
    def listens(self) -> bool:
        """Whether what the runner says is heard at once."""
        return not self._paused

    @property
    def lines_up(self) -> bool:
        """See `Container.lines_up`."""
        return self._line.open

    async def run(
        self, request: InputRequest, on_item: OnItem | None = None, on_begin: OnBegin | None = None
    ) -> End | NotBegun:
        """See `Container.run`."""
        if self._exit is not None:
            return NotBegun(exit=self._exit)
        if self._enough:  # it was on its way to the runner when that was heard
            return NotBegun()
        given = Given(request, self._loop.create_future(), on_item, on_begin)
        if self._line.get(given.key) is not None:
            raise ValueError(f"input {given.key} runs already in container {self._container}")
        try:
            self._send(ToRunner.INPUT, input_meta(request), request.payload or b"")
            self._line.add(given)
            return await given.end
        except asyncio.CancelledError:
            self.cancel(*given.key)
            raise
        finally:
            self._line.remove(given)

    def credit(self, call: str, index: int, n: int) -> None:
        """See `Container.credit`."""
        if self._line.get((call, index)) is not None:
            self._send(ToRunner.CREDIT, {"call": call, "index": index, "n": n})

    def cancel(self, call: str, index: int) -> None:
        """See `Container.cancel`."""
        given = self._line.get((call, index))
        if given is not None and given.begun:
            self._send(ToRunner.CANCEL, {"call": call, "index": index})
        elif given is not None:
            self._line.recall_one(given)

    def recall(self) -> None:
        """See `Container.recall`."""
        self._line.recall()

    def when_enough(self, tell: Callable[[], None]) -> None:
        """See `Container.when_enough`."""
        self._on_enough = tell
        if self._enough:
            self._tell_enough(tell)

    async def drain(self) -> None:
        """See `Container.drain`."""
        await self._line.empty.wait()

    def request_stop(self) -> None:
        """Ask the runner to interrupt its inputs, run `@exit` hooks and end."""
        self._send(ToRunner.STOP, {})

    def ended(self, exit: Exit) -> None:
        """The backend saw the process end: every input is told. Call it after `closed`."""
        self._exit = exit
        self.pipes.close()
        if self._transport is not None:
            self._transport.abort()
        if not self.started.done():
            self.started.set_result(None)
        self._line.lost(exit)

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes from the runner."""
        try:
            self._on_frames(self._decoder.feed(data))
        except (BadFrame, KeyError, TypeError, ValueError, OSError) as error:
            self._broken = True
            if self._transport is not None:
                self._transport.abort()
            self.on_broken(f"the runner broke the protocol ({type(error).__name__}: {error})")
        else:
            if len(self._line) >= BUNCH_FROM and self._line.open:
                self._pause()

    def _on_frames(self, frames: list[Frame]) -> None:
        if any(frame.kind in _ENDS for frame in frames):
            # What C code printed before the end lies in the pipes: it has to be logged before the result.
            self.pipes.read_all()
        for frame in frames:
            self._on_frame(frame)

    def _pause(self) -> None:
        """The runner has enough to do: what it says meanwhile is heard at once, and answered at once. It stays in the
        socket's buffer, where it is safe from the runner's end."""
        transport = self._transport
        if transport is not None and not self._paused and not transport.is_closing():
            self._paused = True
            transport.pause_reading()
            self._loop.call_later(BUNCH_S, self._listen_again)

    def _listen_again(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The runner closed its end; the process ends, or has ended."""
        self._transport = None
        self._hear_rest()
        if not self.closed.done():
            self.closed.set_result(None)

    def _hear_rest(self) -> None:
        """What the runner sent before it died. A write that fails ends the transport with that unread: a result would
        be lost because the next input was on its way to the runner."""
        rest, self._rest = self._rest, None
        if rest is None:
            return
        with rest:
            try:
                while not self._broken and (data := rest.recv(MAX_READ_BYTES, socket.MSG_DONTWAIT)):
                    self.data_received(data)
            except OSError:
                pass  # nothing more, or the peer reset the connection after its last word

    # --- frames ---

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case FromRunner.LOG:
                self._on_text(frame)
            case FromRunner.ITEM:
                self._on_item(frame)
            case FromRunner.OUTPUT | FromRunner.FAILED:
                self._on_end(frame)
            case FromRunner.RECALLED:
                self._on_recalled(frame)
            case FromRunner.READY | FromRunner.START_FAILED:
                self._on_started(frame)
            case FromRunner.BEGUN:
                self._on_begun(frame)
            case FromRunner.ENOUGH:
                self._enough = True
                if self._on_enough is not None:
                    self._tell_enough(self._on_enough)
            case FromRunner.COMMITTING:
                self.committing = True
            case FromRunner.ENDING:
                self.ending = str(frame.meta.get("reason", ""))[:1000]
            case _:
                pass  # a newer runner's

    def _tell_enough(self, tell: Callable[[], None]) -> None:
        tell()
        self._send(ToRunner.HEARD_ENOUGH, {})

    def say(self, text: str, call: str, index: int) -> None:
        """A line of the platform's in the log of a call."""
        self._on_log(Log(container=self._container, stream="system", text=f"{text}\n", call=call, index=index))

    def _on_text(self, frame: Frame) -> None:
        given = self._line.get((frame.meta.get("call", ""), frame.meta.get("index", 0)))
        call, index = given.key if given is not None else (None, None)
        stream = "stderr" if frame.meta["stream"] == "stderr" else "stdout"
        text = frame.payload.decode("utf-8", "replace")
        self._on_log(Log(container=self._container, stream=stream, text=text, call=call, index=index))

    def _on_item(self, frame: Frame) -> None:
        given = self._line.get(key_of(frame))
        if given is None:
            self._discard(frame)
            return
        if frame.meta["seq"] != given.items:
            raise ValueError(f"item {frame.meta['seq']!r} came after {given.items} items")
        given.items += 1
        if given.on_item is not None:
            request, (payload, path, _) = given.request, self._payload(frame)
            given.on_item(
                Item(
                    call=request.call,
                    index=request.index,
                    seq=given.items - 1,
                    encoding=request.encoding,
                    payload=payload,
                    path=path,
                )
            )

    def _on_begun(self, frame: Frame) -> None:
        for call, index in frame.meta["inputs"]:
            given = self._line.get((call, index))
            if given is not None and given.request.on_begun is not None:
                given.request.on_begun()

    def _on_end(self, frame: Frame) -> None:
        given = self._line.get(key_of(frame))
        if given is None or given.end.done():
            self._discard(frame)
            return
        given.begin()  # it may have been recalled too late
        given.ended(self._output(frame, given) if frame.kind == FromRunner.OUTPUT else failed_of(frame))
        self._line.remove(given)

    def _output(self, frame: Frame, given: Given) -> Output:
        return output_of(frame, given.request.encoding, given.items, self._payload(frame))

    def _on_recalled(self, frame: Frame) -> None:
        given = self._line.get(key_of(frame))
        if given is None or given.begun:
            return
        if frame.meta["begun"]:
            given.begin()
        else:
            given.ended(NotBegun())
            self._line.remove(given)

    def _on_started(self, frame: Frame) -> None:
        if self.started.done():
            raise ValueError("a second start")
        started = parse_started(frame)
        if isinstance(started, Ready) and started.lines_up:
            self._line.order()
        self.started.set_result(started)

    # --- payload files ---

    def _payload(self, frame: Frame) -> Payload:
        name = frame.meta.get("file")
        if not name:
            return frame.payload, None, len(frame.payload)
        path, size = self._claim(name)
        return None, path, size

    def _claim(self, name: object) -> tuple[Path, int]:
        """Move a payload file out of the container's reach."""
        if not isinstance(name, str) or not _PAYLOAD_FILE.match(name):
            raise ValueError(f"not the name of a payload file: {name!r}")
        path = self._results / f"{self._container}-{name}"
        os.rename(self._scratch / name, path)
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            path.unlink(missing_ok=True)
            raise ValueError(f"payload file {name!r} is not a regular file")
        return path, found.st_size

    def _discard(self, frame: Frame) -> None:
        """The end of an input that nobody waits for any more."""
        if frame.meta.get("file"):
            path, _ = self._claim(frame.meta["file"])
            path.unlink(missing_ok=True)

    # --- small print ---

    def _send(self, kind: int, meta: Mapping[str, Any], payload: bytes = b"") -> None:
        if self._transport is None or self._transport.is_closing():
            return
        frame = encode(kind, meta, payload)
        if not self._line and not self._out:  # a lone input is not kept waiting
            self._transport.write(frame)
            return
        self._out.append(frame)
        if len(self._out) == 1:
            self._loop.call_soon(self._write_out)

    def _write_out(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _ask_back(self, given: Given) -> None:
        self._send(ToRunner.RECALL, {"call": given.request.call, "index": given.request.index})

    def _on_pipe(self, stream: str, text: str) -> None:
        # What the next in line prints here could not be told from what this one printed last.
        self._line.close()
        only = self._line.only
        call, index = only.key if only is not None else (None, None)
        self._on_log(Log(container=self._container, stream=stream, text=text, call=call, index=index))


def _ignored(_reason: str) -> None:
    """No backend listens."""
