"""One input: frame in, frames out. Sync or async, plain or generator.

Owns the steps of an input (load arguments, user code, dump result), their times, and what a failure in each
means.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from typing import Any, Callable, Optional

from squall_runner import context, failures, payload, tracing
from squall_runner.channel import Channel
from squall_runner.frames import Frame, FromRunner
from squall_runner.interrupt import Interrupter, Key, cancellation_types
from squall_runner.load import Callee
from squall_runner.output import Capture

ITEM_WINDOW = 256
"""Items that may be sent without a credit; the agent knows the same number."""

_LOAD, _USER, _DUMP = "arguments.load", "user code", "result.dump"
_TIMES = ("read_ns", "started_ns", "ended_ns", "written_ns")
_KINDS = {_LOAD: "deserialization", _USER: "user", _DUMP: "serialization"}


class Ground:
    """What all inputs of a container share."""

    def __init__(self, channel: Channel, capture: Capture, interrupter: Interrupter, code_dir: str) -> None:
        self.channel = channel
        self.capture = capture
        self.interrupter = interrupter
        self.code_dir = code_dir
        self.forking = False
        """A template forks containers from here on: what it shares with them is theirs to replace."""
        self.alone = True
        """At most one input at a time."""


class Execution:
    """One attempt at one input."""

    def __init__(self, frame: Frame, callee: Callee, ground: Ground) -> None:
        meta = frame.meta
        self.key: Key = (meta["call"], int(meta["index"]))
        self.callee = callee
        self.cancel_requested = False
        self.begun = False
        """Whether its task has run at all: one cancelled before that would end without a word."""
        self.stop: Callable[[], bool] = lambda: False
        """How to interrupt it where it runs; set by whoever runs it. False if that cannot be done."""
        self._meta = meta
        self._payload = frame.payload
        self._ground = ground
        self.traceparent: str = meta["traceparent"]
        self.current = context.CurrentInput(*self.key, int(meta["attempt"]), self.traceparent)
        self._encoding: str = meta["encoding"]
        self._step = _LOAD
        self._times = [time.time_ns()]
        """When each step began, by the wall clock."""
        self._items = 0
        self._allowed = ITEM_WINDOW
        self._credited: Callable[[], None] = lambda: None
        self._end_lock = threading.Lock()

    # --- from the reader's thread ---

    def cancel(self) -> bool:
        """Ask it to stop. False if code of its kind cannot be stopped alone."""
        self.cancel_requested = True
        return self.stop()

    def credit(self, n: int) -> None:
        """Allow more items."""
        self._allowed += n
        self._credited()

    # --- where it runs ---

    def run_sync(self) -> None:
        """Run it in this thread, to its end frame. Never raises."""
        try:
            if self.cancel_requested:
                raise cancellation_types()[0]("the call was cancelled")
            args, kwargs = self._arguments()
            with tracing.parent(self.traceparent, self._ground.alone), context.running(self.current):
                result = self._call_sync(args, kwargs)
            self._output(result)
        except BaseException as error:  # noqa: BLE001  # SystemExit of user code is a failure too
            self._failed(error)

    async def run_async(self) -> None:
        """Run it in this task, to its end frame. Never raises."""
        self.begun = True
        try:
            if self.cancel_requested:
                raise sys.modules["asyncio"].CancelledError
            args, kwargs = self._arguments()
            with tracing.parent(self.traceparent, self._ground.alone), context.running(self.current):
                result = await self._call_async(args, kwargs)
            self._output(result)
        except BaseException as error:  # noqa: BLE001  # as above; CancelledError ends this task anyway
            self._failed(error)

    def refuse(self, error: BaseException) -> None:
        """End it without running it."""
        self._step = _USER
        self._failed(error)

    # --- as a part of a batch, which runs the code ---

    def load(self) -> Optional[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Its arguments; None when they could not be loaded, or when it was cancelled: then it has ended."""
        try:
            if self.cancel_requested:
                raise cancellation_types()[0]("the call was cancelled")
            return self._arguments()
        except BaseException as error:  # noqa: BLE001  # whatever unpickling raises
            self._failed(error)
            return None

    def begin(self) -> None:
        """The code begins."""
        self._times[-1] = time.time_ns()

    def output(self, result: Any) -> None:
        """The code has made its result."""
        try:
            self._output(result)
        except BaseException as error:  # noqa: BLE001  # whatever pickling raises; the other results are sent
            self._failed(error)

    def fail(self, error: BaseException) -> None:
        """The code has failed, for all of the batch."""
        self._failed(error)

    # --- steps ---

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._times[0] = time.time_ns()
        data, path = self._payload, self._meta["path"]
        self._payload = b""
        if path:
            with open(path, "rb") as file:
                data = file.read()
        loaded = payload.decode_arguments(self._encoding, data)
        self._step = _USER
        self._times.append(time.time_ns())
        return loaded

    def _call_sync(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._ground.interrupter.armed(self.key) if is_main_thread() else Unarmed():
            if self.cancel_requested:  # it came between the check above and the arming
                raise cancellation_types()[0]("the call was cancelled")
            if not self.callee.is_generator:
                return self.callee.function(*args, **kwargs)
            credits = threading.Semaphore(0)
            self._credited = credits.release
            items = self.callee.function(*args, **kwargs)
            try:
                for value in items:
                    while self._items >= self._allowed:
                        credits.acquire()
                    self._item(value)
            finally:
                _close(items)
        return None

    async def _call_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.callee.is_generator:
            return await self.callee.function(*args, **kwargs)
        asyncio = sys.modules["asyncio"]
        credited = asyncio.Event()
        self._credited = credited.set  # called on the loop
        items = self.callee.function(*args, **kwargs)
        try:
            async for value in items:
                while self._items >= self._allowed:
                    credited.clear()
                    await credited.wait()
                self._item(value)
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()
        return None

    def _item(self, value: Any) -> None:
        self._step = _DUMP
        data = payload.encode_value(self._encoding, value)
        self._step = _USER
        self._ground.channel.send(FromRunner.ITEM, {**self._identity(), "seq": self._items}, data)
        self._items += 1

    def _output(self, result: Any) -> None:
        self._times.append(time.time_ns())
        self._step = _DUMP
        data = payload.encode_value(self._encoding, result)
        times = dict(zip(_TIMES, [*self._times, time.time_ns()]))
        self._send_end(FromRunner.OUTPUT, {**self._identity(), "items": self._items, **times}, data)

    def _failed(self, error: BaseException) -> None:
        times = [*self._times, time.time_ns()]
        meta, pickled = failures.describe(error, self._ground.code_dir)
        meta["kind"] = self._kind(error)
        if meta["kind"] in ("deserialization", "serialization"):
            meta["message"] = self._explained(error)
        if type(error) is OSError and error.errno == errno.ENOSPC:  # a class of the user's own says what they mean
            from squall_runner import full_disk

            meta["disk"] = full_disk.about(error, self._ground.channel.scratch)
        spans = [(step, begun, ended - begun) for step, begun, ended in zip(_KINDS, times, times[1:])]
        started_ns = times[min(1, len(times) - 2)]
        meta.update(self._identity(), items=self._items, started_ns=started_ns, ended_ns=times[-1], spans=spans)
        self._send_end(FromRunner.FAILED, meta, pickled)

    # --- small print ---

    def _send_end(self, kind: int, meta: dict[str, Any], data: bytes) -> None:
        if self._end_lock.acquire(blocking=False):  # an input has one end
            try:
                self._ground.capture.flush()
                self._ground.channel.send(kind, meta, data)
            except OSError:  # its file could not be written, and nothing was sent: that is its end
                self._end_lock.release()
                raise

    def _kind(self, error: BaseException) -> str:
        if self.cancel_requested and _is_cancellation(error):
            return "cancelled"
        return _KINDS[self._step]

    def _explained(self, error: BaseException) -> str:
        name = getattr(self.callee.function, "__qualname__", "the function")
        what = f"{type(error).__name__}: {error}"
        if self._step == _LOAD:
            return f"the arguments of {name} could not be loaded in the container ({what})"
        return f"what {name} returned or yielded cannot be sent as {self._encoding} ({what})"

    def _identity(self) -> dict[str, Any]:
        return {"call": self.key[0], "index": self.key[1]}


class Unarmed:
    """For threads: a signal cannot raise there."""

    def __enter__(self) -> None:
        """Nothing to arm."""

    def __exit__(self, *_: object) -> None:
        """Nothing to disarm."""


def is_main_thread() -> bool:
    """Whether code here can be interrupted by a signal."""
    return threading.current_thread() is threading.main_thread()


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, cancellation_types()):
        return True
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def _close(items: Any) -> None:
    close: Optional[Callable[[], None]] = getattr(items, "close", None)
    if close is not None:
        close()
