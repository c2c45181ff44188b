"""Entry of the process inside a container: takes SETUP from descriptor 3, then becomes a container or a
template.

Started as `python -I -S -c "<boot line>" <folder of squall_runner>`. Standard library only; never sees
credentials of the bus.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from typing import Any, NamedTuple, NoReturn, Optional

from squall_runner import ahead, environment, frames, load, template, tracing, warm
from squall_runner.channel import Channel
from squall_runner.execute import Ground
from squall_runner.interrupt import Interrupter
from squall_runner.output import Capture
from squall_runner.serve import Started, fail_start, phase, serve
from squall_runner.settings import Settings, parse

SOCKET_DESCRIPTOR = 3


class Loaded(NamedTuple):
    """What this process, or the one it was forked from, has imported."""

    raw: Any
    """The user's function or class."""
    instance: Optional[Any] = None
    """Of a class with a snapshot: made, and prepared by its `@enter(snap=True)` hooks."""


def main() -> NoReturn:
    """Life of a process that the agent started."""
    booted_ns = time.time_ns()
    sock = socket.socket(fileno=SOCKET_DESCRIPTOR)
    sock.set_inheritable(False)
    live(sock, None, None, Started(booted_ns))


def live(sock: socket.socket, loaded: Optional[Loaded], capture: Optional[Capture], started: Started) -> NoReturn:
    """Become what SETUP says: a container, a template of one, or a bare interpreter that waits to be forked.

    `loaded` and `capture` are what the process has from the one that it was forked from.
    """
    ground, settings = _connect(sock, capture)
    if capture is not None:
        started.booted_ns = time.time_ns()  # it may have waited since it was forked
    _keep_out_of_forks(ground)
    if not settings.template:
        ground.capture.start_timer()
    trouble = ""
    try:
        if loaded is not None:
            environment.adjust(settings)
        elif settings.module:
            environment.prepare(settings)
            ahead.settle(settings)
        else:
            trouble = ahead.load()
    except OSError as error:  # the image's `workdir` is not there
        fail_start(error, ground, started)
    if settings.volumes:
        _begin_volumes(sock, ground, started, settings)
    if loaded is not None:
        warm.after_fork()
    elif settings.module:
        loaded = _import(settings, ground, started)
        if settings.template and settings.snapshot and settings.is_class:
            loaded = loaded._replace(instance=_snapshot(loaded.raw, settings, ground, started))
    if settings.template:
        _wait_for_forks(sock, loaded, ground, started, settings, trouble)
    assert loaded is not None
    ground.interrupter.install()
    serve(loaded.raw, settings, ground, started, loaded.instance)


def _connect(sock: socket.socket, capture: Optional[Capture]) -> tuple[Ground, Settings]:
    interrupter = Interrupter()
    channel = Channel(sock, interrupter)
    frame = channel.receive()
    if frame is None or frame.kind != frames.ToRunner.SETUP:
        os._exit(0)  # the agent changed its mind
    settings = parse(frame.meta)
    channel.scratch = settings.scratch
    if capture is None:
        capture = Capture(channel.log, interrupter)
        capture.install()
    else:
        capture.connect(channel.log, interrupter)
    return Ground(channel, capture, interrupter, settings.code_dir), settings


def _import(settings: Settings, ground: Ground, started: Started) -> Loaded:
    try:
        with phase(started, "code.import"):
            loaded = Loaded(load.import_target(settings))
            tracing.prepare()
            return loaded
    except BaseException as error:  # noqa: BLE001  # SystemExit at import is the user's error as well
        fail_start(error, ground, started)


def _snapshot(raw: Any, settings: Settings, ground: Ground, started: Started) -> Any:
    try:
        with phase(started, "enter.snap"):
            instance = load.make_instance(raw, settings)
            for hook in load.snap_hooks(raw, instance):
                result = hook()
                if hasattr(result, "__await__"):
                    _await(result)
            return instance
    except BaseException as error:  # noqa: BLE001  # SystemExit in a hook is the user's error as well
        fail_start(error, ground, started)


def _await(awaitable: Any) -> None:
    """On a loop of its own, closed afterwards: an open one could not be shared by forks."""
    import asyncio

    async def awaited() -> None:
        await awaitable

    asyncio.run(awaited())


def _wait_for_forks(
    sock: socket.socket,
    loaded: Optional[Loaded],
    ground: Ground,
    started: Started,
    settings: Settings,
    trouble: str,
) -> NoReturn:
    def boot(own: socket.socket) -> NoReturn:
        live(own, loaded, ground.capture, Started(time.time_ns()))

    ground.capture.flush()
    ground.channel.send(frames.FromRunner.READY, {**started.as_meta(), **template.report(sock), "not_ahead": trouble})
    ground.forking = True
    template.serve_template(sock, ground.channel, boot, settings)


def _begin_volumes(sock: socket.socket, ground: Ground, started: Started, settings: Settings) -> None:
    volumes = importlib.import_module("squall_runner.volumes")

    def give_up() -> NoReturn:
        meta = {**started.as_meta(), **template.report(sock), "commits": True}
        ground.capture.flush()
        ground.channel.send(frames.FromRunner.READY, meta)
        while sock.recv(1 << 16):  # until the agent ends it
            pass
        os._exit(0)

    if settings.template:
        volumes.begin_template(give_up)
    else:
        volumes.begin(settings.volumes)


def _keep_out_of_forks(ground: Ground) -> None:
    """Children that user code forks must not write to this process's socket."""

    def in_child() -> None:
        if not ground.forking:
            ground.channel.abandon()
            ground.capture.abandon()

    os.register_at_fork(after_in_child=in_child)


if __name__ == "__main__":
    sys.exit("squall_runner is started by the agent")
