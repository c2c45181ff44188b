"""For receivers of webhooks that are programs of the same workspace: the key to verify signatures with."""

from __future__ import annotations


def signing_secret() -> str:
    """What `squall webhook secret` shows: `whsec_` and base64, as libraries of Standard Webhooks take it."""
    from squall import session
    from squall.http_api.routes import Route
    from squall.http_api.webhooks import WebhookSecret
    from squall.spec import from_wire

    return from_wire(WebhookSecret, session.current().client.json("GET", Route.WEBHOOK_SECRET)).secret
