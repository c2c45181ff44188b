"""Which server a command talks to: the configured one, the one of `squall up`, or for `run` a temporary one.

A temporary platform takes about a second to start, so `run` begins with that and loads the program meanwhile. Owns
every temporary platform of this process: none is left when the command ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Callable, Optional

from squall import config, local
from squall.errors import ConflictError, ConnectionError, InvalidError

if TYPE_CHECKING:
    from squall.session import Session

_started: list[local.Temporary] = []
"""Not stopped yet."""
_lost: list[local.Temporary] = []
"""Died while it was used."""
WATCH_S = 0.1


class Lost(BaseException):
    """The temporary platform has died under a program that uses it. User code must not swallow that."""


def start_early(arguments: Sequence[str]) -> None:
    """Begins to start a temporary platform if `squall <arguments>` will surely need one."""
    if arguments[:1] != ["run"] or any(word in ("-h", "--help", "-d", "--detach") for word in arguments):
        return
    if not any(os.path.exists(word.partition("::")[0]) for word in arguments[1:]) and "-m" not in arguments:
        return
    with contextlib.suppress(InvalidError):  # of the configuration; told when the command reads it
        if find() is None:
            _started.append(local.Temporary())


def kill_all() -> None:
    """Ends every temporary platform at once, without waiting for anything to finish."""
    while _started:
        _started.pop().abandon()


def find() -> Optional[config.ServerAddress]:
    """The configured server, or the one of `squall up`."""
    address = config.load().address
    if address is not None:
        return address
    server = local.running()
    return None if server is None else config.ServerAddress(server.url, server.token)


def must_outlive(what: str) -> None:
    """Refuses when there is only a temporary platform: `what` needs one that stays."""
    if _started or find() is None:
        raise ConflictError(
            f"{what} needs a squall that stays, and none is running",
            fix="Start one with `squall up`, or set SQUALL_SERVER_URL and SQUALL_TOKEN.",
        )


@contextlib.contextmanager
def for_run(while_waiting: Callable[[str], None]) -> Iterator[Session]:
    """The server on which a program runs; a temporary one is ready in the block, and stopped in order after it."""
    from squall import session

    if not _started:
        address = find()
        if address is not None:
            with session.use(address) as used:
                yield used
            return
        _started.append(local.Temporary())
    platform = _started[0]
    while_waiting("Starting squall on this machine")
    server = platform.ready()
    while_waiting("")
    with session.use(config.ServerAddress(server.url, server.token)) as used:
        try:
            with _watched(platform):
                yield used
        except (Lost, ConnectionError) as error:
            # A platform that has died is the reason, not the network.
            raise (error if platform.alive() else platform.died()) from error
        finally:
            if platform.alive():
                used.recorder.flush()
            while_waiting("Stopping")
            _started.remove(platform)
            platform.stop()


@contextlib.contextmanager
def _watched(platform: local.Temporary) -> Iterator[None]:
    """`Lost` is raised in the main thread when the platform dies within the block; calls would ask it for a minute."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            if not platform.alive() and platform in _started:
                _lost.append(platform)
                # A real signal, because nothing else ends a system call that waits.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, name="squall-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def lost() -> bool:
    """Whether a signal means that the platform has died; true once."""
    return bool(_lost and _lost.pop())


@contextlib.contextmanager
def for_command() -> Iterator[Session]:
    """The server that a command asks. Raises `ConnectionError` when there is none."""
    from squall import session

    yield session.current()
