"""Which server this process talks to. Owns one client per address, and the order in which addresses are looked for."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple, Optional

from squall import config
from squall.client import Client
from squall.config import ServerAddress
from squall.errors import ConnectionError, ExecutionError
from squall.place import is_local
from squall.tracing import Recorder


class Session(NamedTuple):
    """A server, and what the SDK keeps for it."""

    client: Client
    recorder: Recorder
    environment: str


_lock = threading.Lock()
_known: dict[ServerAddress, Session] = {}
_used: list[ServerAddress] = []


def connect(address: ServerAddress) -> Session:
    """The session with that server; made without asking it."""
    address = ServerAddress(address.url, address.token)
    with _lock:
        session = _known.get(address)
        if session is None:
            client = Client(address, patient=not is_local())
            session = _known[address] = Session(client, Recorder(client), config.load().environment)
        return session


@atexit.register
def _close_all() -> None:
    for session in _known.values():
        session.client.close()


@contextlib.contextmanager
def use(address: ServerAddress) -> Iterator[Session]:
    """Talk to that server within the block, whatever is configured."""
    session = connect(address)
    _used.append(session.client.address)
    try:
        yield session
    finally:
        _used.remove(session.client.address)
        session.client.close()


_default: Optional[tuple[tuple[Optional[str], ...], Session]] = None
"""What was found last, and the variables that it was found with: looking costs more than a call."""


def configured() -> Optional[Session]:
    """The session that is set up already: by `use`, by the environment or the file, or a running `squall up`."""
    global _default  # noqa: PLW0603 - one process talks to one server by default
    if _used:
        return connect(_used[-1])
    variables = tuple(map(os.environ.get, (config.SERVER_URL, config.TOKEN, config.ENVIRONMENT, config.HOME)))
    if _default is not None and _default[0] == variables and not _default[1].client.lost:
        return _default[1]
    found = _find()
    _default = None if found is None else (variables, found)
    return found


def _find() -> Optional[Session]:
    address = config.load().address
    if address is not None:
        return connect(address)
    if not is_local():
        raise ExecutionError(
            "this container was started without access to the platform",
            fix="Make calls from processes that keep SQUALL_SERVER_URL and SQUALL_TOKEN of the container.",
        )
    from squall import local

    server = local.running()
    return None if server is None else connect(ServerAddress(server.url, server.token))


def current() -> Session:
    """The session for objects that are looked up. Raises `ConnectionError` when there is no server."""
    session = configured()
    if session is None:
        raise ConnectionError(
            "no server is configured and no local platform is running",
            fix="Start one that stays with `squall up`, or set SQUALL_SERVER_URL and SQUALL_TOKEN.",
        )
    return session


@contextlib.contextmanager
def for_app() -> Iterator[Session]:
    """The session for an app that runs: a temporary platform is started when there is no server."""
    session = configured()
    if session is not None:
        yield session
        return
    from squall import local

    with local.start_ephemeral() as server, use(ServerAddress(server.url, server.token)) as session:
        yield session
        session.recorder.flush()


def app_of_container() -> Optional[str]:
    """Id of the app that this container belongs to; None outside."""
    return None if is_local() else os.environ.get(config.APP_ID)
