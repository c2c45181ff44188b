"""The life of a container: enter hooks, inputs until STOP, exit hooks.

Owns the reader thread and which inputs are running. Where code runs: single-slot synchronous inputs in the
main thread (which reads them itself, see `solo`), several at once in threads, async ones on the loop of the
main thread.
"""

from __future__ import annotations

import atexit
import errno
import os
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NoReturn, Optional, Union

from squall_runner import context, failures
from squall_runner.channel import end_now
from squall_runner.execute import Execution, Ground
from squall_runner.frames import Frame, FromRunner, ToRunner
from squall_runner.interrupt import Key, cancellation_types
from squall_runner.load import Callee, LoadError, Target, build_target
from squall_runner.mainthread import DirectMain, LoopMain
from squall_runner.settings import Settings
from squall_runner.solo import Job, SoloMain
from squall_runner.threads import Threads

if TYPE_CHECKING:
    from squall_runner.batch import Batch, Batcher
    from squall_runner.web.server import WebServer

Main = Union[DirectMain, LoopMain, SoloMain]
Span = tuple[str, int, int]


class Started:
    """What is known about the start so far: when it began, and its phases."""

    def __init__(self, booted_ns: int) -> None:
        self.booted_ns = booted_ns
        self.phases: list[Span] = []

    def as_meta(self) -> dict[str, Any]:
        """The fields of READY and START_FAILED."""
        return {"booted_ns": self.booted_ns, "phases": self.phases}


class phase:
    """Context manager: one part of the start."""

    def __init__(self, started: Started, name: str) -> None:
        self._started, self._name = started, name

    def __enter__(self) -> None:
        self._begun = time.time_ns()

    def __exit__(self, *_: object) -> None:
        self._started.phases.append((self._name, self._begun, time.time_ns() - self._begun))


def fail_start(error: BaseException, ground: Ground, started: Started) -> NoReturn:
    """Report an error of import or of an enter hook, and end."""
    meta, pickled = failures.describe(error, ground.code_dir)
    ground.capture.flush()
    if type(error) is OSError and error.errno == errno.ENOSPC:
        from squall_runner import full_disk

        meta["disk"] = full_disk.about(error, ground.channel.scratch)
    ground.channel.send(FromRunner.START_FAILED, {**meta, **started.as_meta()}, pickled)
    os._exit(1)


def serve(raw: Any, settings: Settings, ground: Ground, started: Started, snapshot: Optional[Any] = None) -> NoReturn:
    """Make the instance (or take the one in the snapshot), run the enter hooks, serve inputs, run the exit hooks."""
    try:
        target = build_target(raw, settings, snapshot)
        main = _main_for(target, settings, ground)
        context.served_by(partial(_enough, main, ground))
        if target.snap:
            with phase(started, "enter.snap"):
                for hook in target.snap:
                    main.run_hook(hook)
        with phase(started, "enter"):
            _check_ports(target)
            for hook in target.enter:
                main.run_hook(hook)
        web = _open_web(target, main, settings, ground, started)
    except BaseException as error:  # noqa: BLE001  # SystemExit in a hook is the user's error as well
        fail_start(error, ground, started)
    container = Container(target, main, settings.max_inputs, ground)
    if settings.batch_size:
        container.collect(settings)
    ground.capture.flush()
    ground.channel.send(FromRunner.READY, {**started.as_meta(), "lines_up": isinstance(main, SoloMain)})
    if isinstance(main, SoloMain):
        main.serve(container.on_frame)
    else:
        threading.Thread(target=container.read, name="squall-reader", daemon=True).start()
        main.serve()
    _end(target, main, ground, web)


def _enough(main: Main, ground: Ground) -> None:
    if isinstance(main, SoloMain):
        main.enough = True
    ground.channel.send(FromRunner.ENOUGH, {})


def _main_for(target: Target, settings: Settings, ground: Ground) -> Main:
    if target.needs_loop:
        return LoopMain()
    return DirectMain() if settings.max_inputs > 1 or settings.batch_size else SoloMain(ground.channel)


def _check_ports(target: Target) -> None:
    """Before the enter hooks of a server start to listen: the port must not be somebody else's."""
    for function, declared in target.web.values():
        if function is None:
            from squall_runner.web.port import check_free

            check_free(declared["port"])


def _open_web(target: Target, main: Main, settings: Settings, ground: Ground, started: Started) -> Optional[WebServer]:
    """The web functions, ready for requests; they are served as soon as the loop runs."""
    if not target.web:
        return None
    with phase(started, "web.open"):
        from squall_runner.web.server import WebServer

        assert isinstance(main, LoopMain)
        server = WebServer(target.web, settings, ground)
        main.run_hook(server.open)
    return server


def _end(target: Target, main: Main, ground: Ground, web: Optional[WebServer]) -> NoReturn:
    closing = [] if web is None else [web.close]
    for hook in [*closing, *target.exit]:
        try:
            main.run_hook(hook)
        except BaseException as error:  # noqa: BLE001  # the other hooks must run
            meta, _ = failures.describe(error, ground.code_dir)
            sys.stderr.write(f"@exit hook {getattr(hook, '__name__', '')} failed:\n{meta['traceback']}")
    atexit._run_exitfuncs()
    _commit_volumes(ground)
    ground.capture.flush()
    # Not sys.exit: it would wait for threads that user code left running.
    os._exit(0)


def _commit_volumes(ground: Ground) -> None:
    volumes = sys.modules.get("squall_runner.volumes")
    if volumes is None:
        return
    ground.channel.send(FromRunner.COMMITTING, {})
    try:
        volumes.finish()
    except BaseException as error:  # noqa: BLE001  # nothing may keep the container from ending
        sys.stderr.write(f"squall: the last commit of its volumes failed: {error!r}\n")


class Container:
    """Routes frames to where they are carried out. `read` runs in its own thread, if the main thread does not read."""

    def __init__(self, target: Target, main: Main, max_inputs: int, ground: Ground) -> None:
        self._target = target
        self._main = main
        self._ground = ground
        self._threads = Threads() if max_inputs > 1 else None
        self._running: dict[Key, Execution] = {}
        self._lined_up: dict[Key, Job] = {}
        """What waits in line behind the input that runs; that one may be in it still."""
        self._stopping = False
        self._batcher: Optional[Batcher] = None
        ground.alone = max_inputs == 1

    def collect(self, settings: Settings) -> None:
        """Inputs are to be run in batches."""
        from squall_runner.batch import Batcher

        at_once = settings.max_inputs // settings.batch_size
        self._threads = Threads() if at_once > 1 else None
        self._ground.alone = at_once == 1
        (callee,) = self._target.callees.values()
        self._batcher = Batcher(callee, settings.batch_size, settings.batch_wait_ms / 1000, at_once, self._ground)
        self._batcher.start = self._run
        self._batcher.open()

    def read(self) -> None:
        """Take frames until the agent is gone."""
        while True:
            frame = self._ground.channel.receive()
            if frame is None:
                end_now()
            self.on_frame(frame)

    def on_frame(self, frame: Frame) -> None:
        """One frame from the agent; kinds that this version does not know are ignored."""
        if frame.kind == ToRunner.INPUT:
            if not self._stopping:
                self._begin(frame)
        elif frame.kind == ToRunner.STOP:
            self._stop()
        elif frame.kind == ToRunner.HEARD_ENOUGH:
            if isinstance(self._main, SoloMain):
                self._main.enough = False  # what is left has begun for the agent
        elif frame.kind in (ToRunner.CANCEL, ToRunner.CREDIT, ToRunner.RECALL):
            execution = self._running.get((frame.meta["call"], frame.meta["index"]))
            if execution is None:
                return  # it has ended, its end frame is on the way
            if frame.kind == ToRunner.RECALL:
                self._recall(execution)
            elif frame.kind == ToRunner.CREDIT:
                self._credit(execution, int(frame.meta["n"]))
            elif not execution.cancel():
                self._interrupt_all(execution)

    def _begin(self, frame: Frame) -> None:
        callee = self._target.callees.get(frame.meta["method"])
        if callee is None:
            name = frame.meta["method"]
            missing = Callee(lambda: None, is_generator=False, is_async=False)
            Execution(frame, missing, self._ground).refuse(LoadError(f"there is no method {name!r}"))
            return
        execution = Execution(frame, callee, self._ground)
        self._running[execution.key] = execution

        done = partial(self._forget, execution)
        if self._batcher is not None:
            self._batcher.add(execution, done)
        else:
            self._run(execution, done)

    def _run(self, work: Union[Execution, Batch], done: Callable[[], None]) -> None:
        def run() -> None:
            work.run_sync()
            done()

        if work.callee.is_async and isinstance(self._main, LoopMain):
            self._main.spawn(work, done)
        elif self._threads is not None:
            self._threads.call(run)
        else:
            work.stop = lambda: self._interrupt(work)
            self._lined_up[work.key] = run
            self._main.call(run)

    def _forget(self, execution: Execution) -> None:
        self._running.pop(execution.key, None)
        self._lined_up.pop(execution.key, None)

    def _recall(self, execution: Execution) -> None:
        """Give it back, or say that it is too late for that."""
        meta = {"call": execution.key[0], "index": execution.key[1], "begun": not self._take_back(execution)}
        self._ground.channel.send(FromRunner.RECALLED, meta)

    def _take_back(self, execution: Execution) -> bool:
        """Whether nothing of it has run, nor will."""
        job = self._lined_up.get(execution.key)
        if job is None or not isinstance(self._main, SoloMain) or not self._main.take_back(job):
            return False
        self._forget(execution)
        return True

    def _credit(self, execution: Execution, n: int) -> None:
        if execution.callee.is_async and isinstance(self._main, LoopMain):
            self._main.soon(lambda: execution.credit(n))
        else:
            execution.credit(n)  # the loop may stand still while this very generator runs

    def _interrupt(self, work: Union[Execution, Batch]) -> bool:
        # Not running yet or not any more: it sees `cancel_requested`, or its end frame is on the way.
        self._ground.interrupter.request(work.key)
        return True

    def _interrupt_all(self, cancelled: Execution) -> None:
        """Threads cannot be stopped one by one: end the container, so that the cancelled code does end."""
        cancelled.refuse(cancellation_types()[0]("the call was cancelled"))
        reason = "interrupted: an input that was cancelled runs in a thread, and threads cannot be stopped alone"
        self._ground.channel.send(FromRunner.ENDING, {"reason": reason})
        self._stop()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        for execution in list(self._running.values()):
            execution.cancel()
        self._main.finish()
