"""Entry of the process inside a container: takes SETUP from descriptor 3, then becomes a container or a
template.

Started as `python -I -S -c "<boot line>" <folder of squall_runner>`. Standard library only; never sees
credentials of the bus.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any, NoReturn

from squall_runner import environment, frames, load, warm
from squall_runner.channel import Channel
from squall_runner.execute import Ground
from squall_runner.interrupt import Interrupter
from squall_runner.output import Capture
from squall_runner.serve import Started, fail_start, phase, serve
from squall_runner.settings import Settings, parse

SOCKET_DESCRIPTOR = 3


def main() -> NoReturn:
    """Life of a process that the agent started."""
    booted_ns = time.time_ns()
    sock = socket.socket(fileno=SOCKET_DESCRIPTOR)
    sock.set_inheritable(False)
    ground, settings = _connect(sock)
    environment.prepare(settings)
    ground.capture.install()
    started = Started(booted_ns)
    raw = _import(settings, ground, started)
    if settings.template:
        _template(sock, raw, settings, ground, started)
    _run(raw, settings, ground, started)


def _connect(sock: socket.socket) -> tuple[Ground, Settings]:
    interrupter = Interrupter()
    channel = Channel(sock, interrupter)
    frame = channel.receive()
    if frame is None or frame.kind != frames.ToRunner.SETUP:
        os._exit(0)  # the agent changed its mind
    settings = parse(frame.meta)
    channel.scratch = settings.scratch
    ground = Ground(channel, Capture(channel.log, interrupter), interrupter, settings.code_dir)
    return ground, settings


def _import(settings: Settings, ground: Ground, started: Started) -> Any:
    _keep_out_of_forks(ground)
    if not settings.template:
        ground.capture.start_timer()
    try:
        with phase(started, "code.import"):
            return load.import_target(settings)
    except BaseException as error:  # noqa: BLE001  # SystemExit at import is the user's error as well
        fail_start(error, ground, started)


def _template(sock: socket.socket, raw: Any, settings: Settings, ground: Ground, started: Started) -> NoReturn:
    from squall_runner import template

    def boot(own: socket.socket) -> NoReturn:
        _boot_fork(own, raw, settings)

    ground.capture.flush()
    ground.channel.send(frames.FromRunner.READY, {**started.as_meta(), **template.report()})
    ground.forking = True
    template.serve_template(sock, ground.channel, boot)


def _boot_fork(sock: socket.socket, raw: Any, template_settings: Settings) -> NoReturn:
    """Go on as a container, in a process that was just forked from a template."""
    started = Started(time.time_ns())
    ground, settings = _connect(sock)
    ground.capture.install()
    ground.capture.start_timer()
    _keep_out_of_forks(ground)
    for name in settings.unset:
        os.environ.pop(name, None)
    os.environ.update(settings.env)
    os.chdir(settings.cwd)
    warm.after_fork()
    _run(raw, settings, ground, started)


def _run(raw: Any, settings: Settings, ground: Ground, started: Started) -> NoReturn:
    ground.interrupter.install()
    serve(raw, settings, ground, started)


def _keep_out_of_forks(ground: Ground) -> None:
    """Children that user code forks must not write to this process's socket."""

    def in_child() -> None:
        if not ground.forking:
            ground.channel.abandon()
            ground.capture.abandon()

    os.register_at_fork(after_in_child=in_child)


if __name__ == "__main__":
    sys.exit("squall_runner is started by the agent")
