"""Ports of the gateways: chosen once, before anything starts, so that a restarted gateway is where it was."""

from __future__ import annotations

import socket

from squall.errors import PortInUseError


def choose(host: str, wanted: int) -> int:
    """`wanted` if it is free, or a free port for 0. Raises `PortInUseError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of the last one that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            raise PortInUseError(f"cannot listen on {host}:{wanted}: {error.strerror}") from error
        return int(probe.getsockname()[1])


def url(host: str, port: int) -> str:
    """How clients on this machine reach a gateway."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{reachable}:{port}"
