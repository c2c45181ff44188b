"""Bodies about tokens and environments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

ROLES = ("viewer", "member", "admin")
"""Of tokens of scope `workspace`: each may do what those before it may."""


@dataclass(frozen=True)
class MakeToken:
    """POST /v1/tokens."""

    name: str
    """For people: whose or what for."""
    scope: str = "workspace"
    """"workspace" (everything), "caller" (calls functions, reads results) or "proxy" (web functions that want one; the
    token is then `<key>.<secret>`)."""
    lifetime_s: Optional[float] = None
    """None = until it is revoked."""
    role: str = "admin"
    """Of scope "workspace": "viewer" (looks), "member" (and changes) or "admin" (and says who may, and what machines
    do)."""


@dataclass(frozen=True)
class MakeEnvironment:
    """POST /v1/environments."""

    name: str


@dataclass(frozen=True)
class EnvironmentInfo:
    """One environment of a workspace."""

    name: str
    created_at: float
    """0 = it was there before environments were made by name; `main` always is."""


@dataclass(frozen=True)
class TokenInfo:
    """One row of GET /v1/tokens. The token itself is stored nowhere."""

    id: str
    name: str
    scope: str
    created_at: float
    expires_at: float = 0.0
    """0 = never."""
    role: str = ""
    """Of scope workspace."""


@dataclass(frozen=True)
class NewToken:
    """Answer of POST /v1/tokens; the only time that the token is told."""

    token: str
    id: str
    name: str
    scope: str
    expires_at: float = 0.0
    role: str = ""
