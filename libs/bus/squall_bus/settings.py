"""Settings of one bus connection, and the few numbers of the link that are not anybody's choice."""

from __future__ import annotations

from dataclasses import dataclass

RECONNECT_WAIT_S = 0.25
"""nats-py waits 2 s by default; a restarted server is ready in 20 ms."""
PING_INTERVAL_S = 5
"""With two unanswered pings a dead peer is noticed in 10-15 s; nats-py's default needs minutes."""
MAX_UNANSWERED_PINGS = 2
MAX_BUFFERED_BYTES = 8 * 1024 * 1024
"""What `send` may hold back while disconnected; older bytes are kept, newer ones are dropped and counted."""
BATCH_FROM = 12
"""A batch costs a server that is alone five fsyncs and a folder (3.5 ms of CPU, and 25 us for each record), a single
record one fsync (0.35 ms of CPU): below about 12 records singles are cheaper. Staged in memory (docs/decisions/0024) a
batch costs it 1.3 ms and 25 us for each record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusSettings:
    """How to reach the bus and what is expected of it."""

    url: str = "nats://127.0.0.1:4222"
    """One url, or several separated by commas."""
    user: str | None = None
    password: str | None = None
    region: str = "local"
    shards: int = 4
    replicas: int = 1
    inbox_prefix: str = "_INBOX"
    """Each role has its own: with the default one, everybody allowed `_INBOX.>` reads other people's replies."""
    name: str = "squall"
    """Shown by the server's connection list."""
    dev: bool = False
    """Accepts an older server with a loud warning instead of refusing it."""
    connect_timeout_s: float = 5.0
    batch_from: int = BATCH_FROM
    """Records of one stream from which on they go out as one atomic batch."""
    tls_ca: str | None = None
    """CA file; set it to speak TLS."""
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def address(self) -> str:
        """`url` for people to read: without the user, password or token that it may have in it."""
        return ",".join(_without_credentials(url.strip()) for url in self.url.split(","))


def _without_credentials(url: str) -> str:
    before, at, place = url.rpartition("@")
    scheme, there, _ = before.partition("://")
    return f"{scheme if there else 'nats'}://{place}" if at else url
