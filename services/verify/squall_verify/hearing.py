"""The receiver of a run's webhooks: hears everything, and at first refuses some of it. Judges nothing but signatures.

It stands outside of the platform and is never hurt: what does not arrive was not sent.
"""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from squall.client import Client
from squall.config import ServerAddress
from squall.http_api.routes import Route
from squall_bus import Bus
from squall_contracts.webhooks import PENDING, WEBHOOKS, WebhookDelivery
from squall_service.clock import SystemClock
from squall_verify.state import Heard

ADDRESS = "127.0.0.1"
PLATFORM: Mapping[str, str] = {
    "SQUALL_GATEWAY_WEBHOOK_ALLOWED": json.dumps([ADDRESS]),
    # Its gateways may be down for several tries in a row, and then nothing may have been given up.
    "SQUALL_GATEWAY_WEBHOOK_RETRIES_S": json.dumps([0.5, 1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8]),
}
REFUSED_OF, CUT_OF = 5, 7
"""One in so many events is answered by 500 when it comes first; of one in so many the connection is cut instead."""
FRESH_S = 300.0
"""Receivers take no older timestamps, as Standard Webhooks says."""
_CLOCK = SystemClock()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.lock = threading.Lock()
        self.heard: list[tuple[float, str, dict[str, str], bytes, int]] = []
        """When, on which path, with which headers, what; and the answer."""
        self.ids: set[str] = set()

    def answer_for(self, webhook_id: str) -> int:
        """204, or for the first time of some events something else; 0 = none. With the lock held."""
        if webhook_id in self.ids:
            return 204
        self.ids.add(webhook_id)
        drawn = zlib.crc32(webhook_id.encode())
        return 500 if drawn % REFUSED_OF == 0 else 0 if drawn % CUT_OF == 0 else 204

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Gateways are killed while they send."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # its gateway was killed in the middle of it
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            status = self.server.answer_for(headers.get("webhook-id", ""))
            self.server.heard.append((_CLOCK.now(), self.path, headers, body, status))
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing for each request."""


class Receiver:
    """`with receiver.listening(): ...`; what it has heard stays."""

    def __init__(self) -> None:
        self._server = _Server()
        self.url = f"http://{ADDRESS}:{self._server.server_port}"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answers within the block."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def heard(self, secrets: Mapping[str, str]) -> tuple[Heard, ...]:
        """Everything, with what the signatures are worth. `secrets`: each workspace's."""
        with self._server.lock:
            found = list(self._server.heard)
        return tuple(
            _read(at, f"{self.url}{path}", headers, body, status, secrets.get(path.split("/")[1], ""))
            for at, path, headers, body, status in found
        )


def _read(at: float, url: str, headers: dict[str, str], body: bytes, status: int, secret: str) -> Heard:
    told: Any = {}
    try:
        told = json.loads(body)
        key, outcome = (str(told["data"]["call"]), int(told["data"]["index"])), str(told["data"]["outcome"])
    except (ValueError, KeyError, TypeError):
        key, outcome = ("", 0), ""
    return Heard(
        id=headers.get("webhook-id", ""),
        at=at,
        url=url,
        key=key,
        outcome=outcome,
        digest=hashlib.sha256(body).hexdigest()[:16],
        signed=_is_signed(headers, body, secret, at),
        answer=status,
    )


def _is_signed(headers: dict[str, str], body: bytes, secret: str, at: float) -> bool:
    """As a receiver finds it that looks at once."""
    from standardwebhooks import Webhook

    try:
        stamp = int(headers["webhook-timestamp"])
        wanted = Webhook(secret).sign(headers["webhook-id"], datetime.fromtimestamp(stamp, UTC), body.decode())
    except (KeyError, ValueError, OverflowError):
        return False
    return wanted in headers.get("webhook-signature", "").split(" ") and abs(stamp - at) < FRESH_S


def secret_of(address: ServerAddress) -> str:
    """The signing secret of a token's workspace."""
    client = Client(address, patient=True)
    try:
        return str(client.json("GET", Route.WEBHOOK_SECRET)["secret"])
    finally:
        client.close()


async def untold(bus: Bus) -> dict[str, str]:
    """Events that are still to be sent."""
    found = {}
    for entry in await bus.kv(WEBHOOKS).entries():
        if entry.key.startswith("event."):
            delivery = WebhookDelivery.decode(entry.value)
            if delivery.state == PENDING:
                found[delivery.id] = delivery.state
    return found
