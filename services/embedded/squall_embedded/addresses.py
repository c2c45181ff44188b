"""Ports of a platform: chosen once, before anything starts, and held, so that a restarted part is where it was."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Self

from squall.errors import PortInUseError


class Ports:
    """Ports of this machine that nobody else gets until the block ends.

    A port that was only looked for may have another owner by the time its service listens, and one whose service is
    just starting again too: it is given to whoever asks for any port, and to connections on their way out. Linux gives
    none away that a socket is bound to, and lets a second socket listen there as long as the first does not and both
    have SO_REUSEADDR, as servers do (bind in inet_connection_sock.c of the kernel, socket(7)).
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def choose(self, host: str, wanted: int) -> int:
        """`wanted` if it is free, or a free port for 0. Raises `PortInUseError`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        holder = self._held.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # Connections of the last one that are still closing do not count either.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((host, wanted))
        except OSError as error:
            raise PortInUseError(f"cannot listen on {host}:{wanted}: {error.strerror}") from error
        return int(holder.getsockname()[1])


def url(host: str, port: int) -> str:
    """How clients on this machine reach a gateway."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reachable}:{port}"
