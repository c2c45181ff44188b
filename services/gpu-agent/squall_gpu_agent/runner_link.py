"""The agent's end of the socket to one runner: inputs out; outputs, items and logs in.

Owns the conversation with one runner and what is known about its running inputs. Trusts nothing that comes back: a
runner that breaks the protocol ends its link, never the agent. Starts and kills no process: the backend does.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import re
import select
import socket
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from squall.spec import Encoding
from squall_gpu_agent.backend import (
    End,
    Exit,
    Failed,
    FailureKind,
    InputRequest,
    Item,
    Log,
    Lost,
    OnItem,
    OnLog,
    Output,
    Phase,
)
from squall_runner.frames import BadFrame, Decoder, Frame, FromRunner, ToRunner, encode

MAX_PIPE_READ_BYTES = 1 << 16
MAX_PIPE_READS = 16
_PAYLOAD_FILE = re.compile(r"payload-\d{1,20}-\d{1,20}\Z")

Key = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The runner has imported the code and run the enter hooks."""

    booted_ns: int
    """Its clock at its first line."""
    phases: tuple[Phase, ...]
    report: Mapping[str, Any]
    """What a template says about itself; empty for containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartError:
    """Import or an enter hook raised."""

    type_name: str
    message: str
    traceback: str
    pickled: bytes | None
    booted_ns: int
    phases: tuple[Phase, ...]


@dataclass(slots=True)
class _Running:
    """One input that the runner was given."""

    request: InputRequest
    end: asyncio.Future[End]
    on_item: OnItem | None
    items: int = 0


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
        self._decoder = Decoder()
        self._running: dict[Key, _Running] = {}
        self.pipes = Pipes(self._on_pipe)
        """Descriptors 1 and 2 of the runner."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._exit: Exit | None = None
        self.on_broken: Callable[[str], None] = _ignored
        """Set by the backend: called once when the runner broke the protocol; it then kills the runner."""
        self.started: asyncio.Future[Ready | StartError | None] = self._loop.create_future()
        """How the start went; None when the runner ended without a word."""
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when nothing more can come from the runner's socket."""
        self.ending = ""
        """Why the runner said that it ends by itself."""

    async def open(self, sock: socket.socket, setup: Mapping[str, Any]) -> None:
        """Take over the agent's end of the socketpair and send SETUP."""
        await self._loop.create_unix_connection(lambda: self, sock=sock)
        self._send(ToRunner.SETUP, setup)

    @property
    def running(self) -> frozenset[Key]:
        """Inputs that have not ended."""
        return frozenset(self._running)

    async def run(self, request: InputRequest, on_item: OnItem | None = None) -> End:
        """See `Container.run`."""
        if self._exit is not None:
            return Lost(exit=self._exit)
        key = (request.call, request.index)
        if key in self._running:
            raise ValueError(f"input {key} runs already in container {self._container}")
        running = _Running(request, self._loop.create_future(), on_item)
        self._running[key] = running
        self._idle.clear()
        try:
            self._send(ToRunner.INPUT, _input_meta(request), request.payload or b"")
            return await running.end
        except asyncio.CancelledError:
            self.cancel(*key)
            raise
        finally:
            self._forget(key)

    def credit(self, call: str, index: int, n: int) -> None:
        """See `Container.credit`."""
        if (call, index) in self._running:
            self._send(ToRunner.CREDIT, {"call": call, "index": index, "n": n})

    def cancel(self, call: str, index: int) -> None:
        """See `Container.cancel`."""
        if (call, index) in self._running:
            self._send(ToRunner.CANCEL, {"call": call, "index": index})

    async def drain(self) -> None:
        """See `Container.drain`."""
        await self._idle.wait()

    def request_stop(self) -> None:
        """Ask the runner to interrupt its inputs, run `@exit` hooks and end."""
        self._send(ToRunner.STOP, {})

    def ended(self, exit: Exit) -> None:
        """The backend saw the process end: every running input becomes `Lost`. Call it after `closed`."""
        self._exit = exit
        self.pipes.close()
        if self._transport is not None:
            self._transport.abort()
        if not self.started.done():
            self.started.set_result(None)
        for running in list(self._running.values()):
            if not running.end.done():
                running.end.set_result(Lost(exit=exit))

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes from the runner."""
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(frame)
        except (BadFrame, KeyError, TypeError, ValueError, OSError) as error:
            if self._transport is not None:
                self._transport.abort()
            self.on_broken(f"the runner broke the protocol ({type(error).__name__}: {error})")

    def connection_lost(self, exc: Exception | None) -> None:
        """The runner closed its end; the process ends, or has ended."""
        self._transport = None
        if not self.closed.done():
            self.closed.set_result(None)

    # --- frames ---

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case FromRunner.LOG:
                self._on_text(frame)
            case FromRunner.ITEM:
                self._on_item(frame)
            case FromRunner.OUTPUT | FromRunner.FAILED:
                self._on_end(frame)
            case FromRunner.READY | FromRunner.START_FAILED:
                self._on_started(frame)
            case FromRunner.BEGUN:
                self._on_begun(frame)
            case FromRunner.ENDING:
                self.ending = str(frame.meta.get("reason", ""))[:1000]
            case _:
                pass  # a newer runner's

    def _on_text(self, frame: Frame) -> None:
        key = (frame.meta.get("call"), frame.meta.get("index"))
        call, index = key if key in self._running else (None, None)
        stream = "stderr" if frame.meta["stream"] == "stderr" else "stdout"
        text = frame.payload.decode("utf-8", "replace")
        self._on_log(Log(container=self._container, stream=stream, text=text, call=call, index=index))

    def _on_item(self, frame: Frame) -> None:
        running = self._running.get(_key(frame))
        if running is None:
            self._discard(frame)
            return
        if frame.meta["seq"] != running.items:
            raise ValueError(f"item {frame.meta['seq']!r} came after {running.items} items")
        running.items += 1
        if running.on_item is not None:
            request, (payload, path, _) = running.request, self._payload(frame)
            running.on_item(
                Item(
                    call=request.call,
                    index=request.index,
                    seq=running.items - 1,
                    encoding=request.encoding,
                    payload=payload,
                    path=path,
                )
            )

    def _on_begun(self, frame: Frame) -> None:
        for call, index in frame.meta["inputs"]:
            running = self._running.get((call, index))
            if running is not None and running.request.on_begun is not None:
                running.request.on_begun()

    def _on_end(self, frame: Frame) -> None:
        running = self._running.get(_key(frame))
        if running is None or running.end.done():
            self._discard(frame)
            return
        # What C code printed before the end lies in the pipes: it has to be logged before the result.
        self.pipes.read_all()
        running.end.set_result(self._output(frame, running) if frame.kind == FromRunner.OUTPUT else _failed(frame))

    def _output(self, frame: Frame, running: _Running) -> Output:
        payload, path, size = self._payload(frame)
        return Output(
            encoding=Encoding(running.request.encoding),
            payload=payload,
            path=path,
            size=size,
            items=running.items,
            started_ns=int(frame.meta["started_ns"]),
            ended_ns=int(frame.meta["ended_ns"]),
            spans=_phases(frame.meta["spans"]),
        )

    def _on_started(self, frame: Frame) -> None:
        if self.started.done():
            raise ValueError("a second start")
        self.started.set_result(parse_started(frame))

    # --- payload files ---

    def _payload(self, frame: Frame) -> tuple[bytes | None, Path | None, int]:
        name = frame.meta.get("file")
        if name is None:
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
        if frame.meta.get("file") is not None:
            path, _ = self._claim(frame.meta["file"])
            path.unlink(missing_ok=True)

    # --- small print ---

    def _send(self, kind: int, meta: Mapping[str, Any], payload: bytes = b"") -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, dict(meta), payload))

    def _forget(self, key: Key) -> None:
        self._running.pop(key, None)
        if not self._running:
            self._idle.set()

    def _on_pipe(self, stream: str, text: str) -> None:
        call, index = next(iter(self._running)) if len(self._running) == 1 else (None, None)
        self._on_log(Log(container=self._container, stream=stream, text=text, call=call, index=index))


class Pipes:
    """What a process writes to descriptors 1 and 2: C code, subprocesses. Owns the agent's ends."""

    def __init__(self, on_text: Callable[[str, str], None]) -> None:
        """`on_text` gets the stream's name and the text."""
        self._on_text = on_text
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}
        self._poll = select.poll()

    def add(self, stream: str, descriptor: int) -> None:
        """Read this one from now on."""
        os.set_blocking(descriptor, False)
        self._open[descriptor] = (stream, codecs.getincrementaldecoder("utf-8")("replace"))
        self._loop.add_reader(descriptor, self._read, descriptor)
        self._poll.register(descriptor, select.POLLIN)

    def read_all(self) -> None:
        """Pass on what was written until now."""
        # At each input's end, mostly for nothing: one system call instead of a failing read from each pipe.
        if self._open and self._poll.poll(0):
            for descriptor in list(self._open):
                self._read(descriptor)

    def close(self) -> None:
        """The process has ended; what it started may still hold the other ends."""
        self.read_all()
        for descriptor in list(self._open):
            self._close(descriptor)

    def _read(self, descriptor: int) -> None:
        for _ in range(MAX_PIPE_READS):  # a child that never stops printing must not stop the agent
            if descriptor not in self._open:
                return
            try:
                data = os.read(descriptor, MAX_PIPE_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            stream, decoder = self._open[descriptor]
            text = decoder.decode(data, final=not data)
            if text:
                self._on_text(stream, text)
            if not data:
                self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        if self._open.pop(descriptor, None) is not None:
            self._loop.remove_reader(descriptor)
            self._poll.unregister(descriptor)
            os.close(descriptor)


def parse_started(frame: Frame) -> Ready | StartError:
    """READY or START_FAILED as a value. Raises KeyError, TypeError or ValueError for anything else."""
    meta = frame.meta
    booted_ns, phases = int(meta["booted_ns"]), _phases(meta["phases"])
    if frame.kind == FromRunner.READY:
        return Ready(booted_ns=booted_ns, phases=phases, report=meta)
    return StartError(
        type_name=_type_name(meta),
        message=str(meta["message"]),
        traceback=str(meta["traceback"]),
        pickled=frame.payload or None,
        booted_ns=booted_ns,
        phases=phases,
    )


def _input_meta(request: InputRequest) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "call": request.call,
        "index": request.index,
        "attempt": request.attempt,
        "method": request.method,
        "encoding": request.encoding.value,
    }
    if request.path is not None:
        meta["path"] = str(request.path)
    if request.traceparent:
        meta["traceparent"] = request.traceparent
    return meta


def _key(frame: Frame) -> Key:
    call, index = frame.meta["call"], frame.meta["index"]
    if not isinstance(call, str) or not isinstance(index, int):
        raise TypeError("an input is named by a string and a number")
    return call, index


def _failed(frame: Frame) -> Failed:
    meta = frame.meta
    return Failed(
        kind=FailureKind(meta["kind"]),
        type_name=str(meta["type"]),
        module=str(meta["module"]),
        message=str(meta["message"]),
        traceback=str(meta["traceback"]),
        pickled=frame.payload or None,
        items=int(meta["items"]),
        started_ns=int(meta["started_ns"]),
        ended_ns=int(meta["ended_ns"]),
        spans=_phases(meta["spans"]),
    )


def _phases(rows: Iterable[Any]) -> tuple[Phase, ...]:
    return tuple(Phase(str(name), int(start), int(duration)) for name, start, duration in rows)


def _type_name(meta: Mapping[str, Any]) -> str:
    module, name = str(meta["module"]), str(meta["type"])
    return name if module == "builtins" else f"{module}.{name}"


def _ignored(_reason: str) -> None:
    """No backend listens."""
