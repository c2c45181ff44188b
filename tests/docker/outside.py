"""A machine outside, for tests of what sandboxes reach: a network namespace with addresses of several kinds.

No packet leaves this machine; the addresses are routed to the namespace for as long as the test runs.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Iterator

PUBLIC, SECOND_PUBLIC, PRIVATE, METADATA = "198.51.100.2", "198.51.100.3", "10.213.77.2", "169.254.169.254"
METADATA_OF_AZURE = "168.63.129.16"
ROUTED = (PRIVATE, METADATA, METADATA_OF_AZURE)
PORT = 8077
_SERVE = f"""
import socket
server = socket.create_server(("", {PORT}))
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """It listens at `PORT` of all of these addresses."""
    name = f"sqt-{secrets.token_hex(3)}"
    _ip("netns", "add", name)
    server = None
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", "198.51.100.1/24", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "link", "set", "eth0", "up")
        for address in (f"{PUBLIC}/24", f"{SECOND_PUBLIC}/24", *(f"{address}/32" for address in ROUTED)):
            _ip("-n", name, "addr", "add", address, "dev", "eth0")
        for address in ROUTED:
            _ip("route", "add", f"{address}/32", "dev", name)
        _ip("-n", name, "route", "add", "default", "via", "198.51.100.1")
        command = ["ip", "netns", "exec", name, sys.executable, "-c", _SERVE]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        yield
    finally:
        if server is not None:
            server.kill()
            server.communicate()
        _ip("netns", "delete", name)
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
