"""Webhooks: calls that tell their end to a URL, and a receiver that believes only what is signed.

    SQUALL_GATEWAY_WEBHOOK_ALLOWED='["127.0.0.1"]' squall run examples/webhook_receiver.py

Webhooks go to public addresses only; the variable lets the platform on this machine reach the receiver on this machine.
"""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import squall
from squall import webhooks

app = squall.App("webhook-receiver")
events: "queue.Queue[dict]" = queue.Queue()
known: set = set()


@app.function()
def divide(a: int, b: int) -> float:
    """Fails for b = 0."""
    return a / b


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 to what is signed with the workspace's key, 401 to everything else."""

    secret = ""

    def do_POST(self) -> None:
        from standardwebhooks import Webhook, WebhookVerificationError  # pip install standardwebhooks

        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            Webhook(self.secret).verify(body.decode(), {k.lower(): v for k, v in self.headers.items()})
        except WebhookVerificationError:
            self.send_error(401)
            return
        if self.headers["webhook-id"] not in known:  # at least once: the same id is the same event
            known.add(self.headers["webhook-id"])
            events.put(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing for each request."""


@app.local_entrypoint()
def main() -> None:
    """Two calls, and what is told of them."""
    Receiver.secret = webhooks.signing_secret()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    told = divide.with_webhook(f"http://127.0.0.1:{server.server_port}/ends")
    told.spawn(1, 4)
    told.spawn(1, 0)
    for event in sorted((events.get(timeout=60) for _ in range(2)), key=lambda event: event["type"]):
        print(event["type"], event["data"]["function"], event["data"].get("error", {}).get("type", ""))
