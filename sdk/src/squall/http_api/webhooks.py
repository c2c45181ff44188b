"""Bodies about completion webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WebhookInfo:
    """The end of one input on its way to its webhook."""

    call: str
    index: int
    url: str
    event: str
    """`call.succeeded` and so on."""
    app: str
    function: str
    state: str
    """pending, delivered or dead."""
    tries: int
    """Since the beginning, or since it was redriven."""
    created_at: float
    next_at: float
    """When it is tried next; 0 = at once, or never."""
    recent: tuple[dict[str, Any], ...] = ()
    """{at, took_s, what} of the last tries, newest first."""


@dataclass(frozen=True)
class RedriveWebhooks:
    """POST /v1/webhooks/redrive."""

    call: str = ""
    """Empty for all."""
    limit: int = 1000


@dataclass(frozen=True)
class WebhookSecret:
    """The key that signs the webhooks of the workspace."""

    secret: str
    """`whsec_` and base64: what libraries of Standard Webhooks take."""
    previous_until: float = 0.0
    """Until when the one before signs too; 0 = there is none."""
