"""Batched functions: inputs are collected, and the code is called once for all of them, with lists.

Owns when a batch is complete, the lists that it is called with, and whose failure is whose. Every input keeps its own
end frame, its own arguments and its own cancel; imported only by containers of batched functions.
"""

from __future__ import annotations

import collections
import importlib
import sys
import threading
import time
from typing import Any, Callable, Optional

from squall_runner import context, tracing
from squall_runner.execute import Execution, Ground, Unarmed, is_main_thread
from squall_runner.frames import FromRunner
from squall_runner.interrupt import Key, cancellation_types
from squall_runner.load import Callee

Job = Callable[[], None]


class Batch:
    """Inputs that one call of the code takes. Same face as `Execution` for whoever runs it."""

    def __init__(self, executions: list[Execution], callee: Callee, ground: Ground) -> None:
        self.key: Key = executions[0].key
        self.begun = False
        self.stop: Callable[[], bool] = lambda: False
        """How to interrupt the code; set by whoever runs it."""
        self._executions = executions
        self._live = executions
        """Those whose results the code makes: their arguments could be loaded, and nobody has cancelled them."""
        self.callee = callee
        self._ground = ground
        self._lock = threading.Lock()

    def cancel(self, execution: Execution) -> bool:
        """One caller no longer wants its result: the others still do. False if the code must stop and cannot."""
        with self._lock:
            others = any(not each.cancel_requested for each in self._live)
        if others:
            execution.refuse(cancellation_types()[0]("the call was cancelled"))
            return True
        return self.stop()

    def run_sync(self) -> None:
        """Run it in this thread, to the end frame of each input. Never raises."""
        try:
            lists = self._begin()
            if lists is None:
                return
            armed = self._ground.interrupter.armed(self.key) if is_main_thread() else Unarmed()
            with self._surroundings(), armed:
                if self._all_cancelled():
                    raise cancellation_types()[0]("the call was cancelled")
                results = self.callee.function(**lists)
            self._end(results)
        except BaseException as error:  # noqa: BLE001  # SystemExit of user code is a failure too
            self._failed(error)

    async def run_async(self) -> None:
        """Run it in this task, to the end frame of each input. Never raises."""
        self.begun = True
        try:
            lists = self._begin()
            if lists is None:
                return
            with self._surroundings():
                if self._all_cancelled():
                    raise sys.modules["asyncio"].CancelledError
                results = await self.callee.function(**lists)
            self._end(results)
        except BaseException as error:  # noqa: BLE001  # as above
            self._failed(error)

    # --- steps ---

    def _begin(self) -> Optional[dict[str, list[Any]]]:
        """One list for each parameter; None when no input is left. An input that does not fit fails alone."""
        names, rows = _parameters(self.callee.function), []
        live = []
        for execution in self._executions:
            arguments = execution.load()
            if arguments is None:
                continue
            try:
                rows.append(_row(names, *arguments))
                live.append(execution)
            except Exception as error:  # noqa: BLE001  # the caller's mistake, in its own words
                execution.refuse(error)
        with self._lock:
            self._live = live
        if not live:
            return None
        begun = [list(execution.key) for execution in live]
        self._ground.channel.send(FromRunner.BEGUN, {"inputs": begun})
        for execution in live:
            execution.begin()
        return {name: [row[name] for row in rows] for name in names}

    def _surroundings(self) -> _Surroundings:
        return _Surroundings(self._live[0], self._ground.alone)

    def _end(self, results: Any) -> None:
        if not isinstance(results, list):
            raise _invalid(f"a batched function must return a list, got {type(results).__name__}")
        if len(results) != len(self._live):
            raise _invalid(
                f"a batched function must return one result for each of {len(self._live)} inputs, got {len(results)}"
            )
        for execution, result in zip(self._live, results):
            execution.output(result)

    def _failed(self, error: BaseException) -> None:
        for execution in self._live:
            execution.fail(error)

    def _all_cancelled(self) -> bool:
        return all(execution.cancel_requested for execution in self._live)


class _Surroundings:
    """What code of a batch runs in: the input and the span of the batch's first input."""

    def __init__(self, first: Execution, alone: bool) -> None:
        self._parent = tracing.parent(first.traceparent, alone)
        self._running = context.running(first.current)

    def __enter__(self) -> None:
        self._parent.__enter__()
        self._running.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._running.__exit__(*exc)
        self._parent.__exit__(*exc)


class Batcher:
    """Collects inputs. A batch is due when it is full, or when its first input has waited long enough."""

    def __init__(self, callee: Callee, size: int, wait_s: float, at_once: int, ground: Ground) -> None:
        self.callee, self._ground = callee, ground
        self._size, self._wait_s = size, wait_s
        self._free = at_once
        """Batches that may begin now."""
        self._waiting: collections.deque[tuple[float, Execution, Job]] = collections.deque()
        self._changed = threading.Condition()
        self.start: Callable[[Batch, Job], None] = lambda batch, done: None
        """Runs a batch and then calls `done`; set by whoever runs code."""

    def open(self) -> None:
        """Begin to make batches."""
        threading.Thread(target=self._work, name="squall-batches", daemon=True).start()

    def add(self, execution: Execution, done: Job) -> None:
        """One more input; `done` is called after its end."""
        execution.stop = lambda: self._cancel_waiting(execution)
        with self._changed:
            self._waiting.append((time.monotonic() + self._wait_s, execution, done))
            self._changed.notify()

    def _cancel_waiting(self, execution: Execution) -> bool:
        with self._changed:
            found = [entry for entry in self._waiting if entry[1] is execution]
            for entry in found:
                self._waiting.remove(entry)
        for _, _, done in found:
            execution.refuse(cancellation_types()[0]("the call was cancelled"))
            done()
        return True  # not found: its batch begins at this moment, and looks at `cancel_requested`

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._due():
                    self._changed.wait(self._pause_s())
                entries = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
                self._free -= 1
            self._run(entries)

    def _due(self) -> bool:
        if not self._free or not self._waiting:
            return False
        return len(self._waiting) >= self._size or self._waiting[0][0] <= time.monotonic()

    def _pause_s(self) -> Optional[float]:
        if not self._free or not self._waiting:
            return None
        return max(0.0, self._waiting[0][0] - time.monotonic())

    def _run(self, entries: list[tuple[float, Execution, Job]]) -> None:
        batch = Batch([execution for _, execution, _ in entries], self.callee, self._ground)
        for _, execution, _ in entries:
            execution.stop = _canceller(batch, execution)

        def done() -> None:
            for _, _, ended in entries:
                ended()
            with self._changed:
                self._free += 1
                self._changed.notify()

        self.start(batch, done)


def _canceller(batch: Batch, execution: Execution) -> Callable[[], bool]:
    return lambda: batch.cancel(execution)


def _parameters(function: Any) -> list[str]:
    """Names of the parameters, without the bound `self`."""
    bound = getattr(function, "__func__", None)
    code = (bound or function).__code__
    names = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return names[1:] if bound is not None else names


def _row(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """One input's value for each parameter, however it was given."""
    if len(args) > len(names):
        raise _invalid(f"a batched function with {len(names)} parameters was called with {len(args)} arguments")
    row = dict(zip(names, args))
    for name, value in kwargs.items():
        if name not in names or name in row:
            raise _invalid(
                f"a batched function was given {name!r} {'twice' if name in row else 'and has no such parameter'}"
            )
        row[name] = value
    missing = [name for name in names if name not in row]
    if missing:
        raise _invalid(f"every input of a batched function gives every parameter: {missing[0]!r} is missing")
    return row


def _invalid(message: str) -> Exception:
    """squall's own error where the image has the SDK, as it has in every container that squall starts."""
    try:
        found: Exception = importlib.import_module("squall.errors").InvalidError(message)
    except ImportError:
        return ValueError(message)
    return found
