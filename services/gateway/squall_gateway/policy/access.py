"""What a token of a role may do: a role for each request. Pure; the table of exceptions is short because the rule is
not to be forgotten: looking needs a viewer, everything else a member.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from squall.http_api.access import ROLES
from squall.http_api.routes import Route

VIEWER, MEMBER, ADMIN = ROLES
LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})

EXCEPTIONS: Mapping[tuple[str, str], str] = {
    # Looks, although it is a POST.
    ("POST", Route.FUNCTION_STATS): VIEWER,
    # Shows what others must not know.
    ("GET", Route.WEBHOOK_SECRET): MEMBER,
    # Who may do what, and what belongs to everybody.
    ("GET", Route.TOKENS): ADMIN,
    ("POST", Route.TOKENS): ADMIN,
    ("DELETE", Route.TOKEN): ADMIN,
    ("POST", Route.ENVIRONMENTS): ADMIN,
    ("DELETE", Route.ENVIRONMENT): ADMIN,
    ("POST", Route.NODE_DRAIN): ADMIN,
    ("POST", Route.NODE_RESUME): ADMIN,
    ("POST", Route.IMAGES_PRUNE): ADMIN,
    ("POST", Route.VOLUME_COLLECTIONS): ADMIN,
    ("POST", Route.WEBHOOK_SECRET_ROTATE): ADMIN,
}


@dataclass(frozen=True, slots=True)
class _Exception:
    method: str
    pattern: re.Pattern[str]
    role: str


def _pattern(route: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{[a-z0-9]+\\\}", "[^/]+", re.escape(route)))


_EXCEPTIONS = [_Exception(method, _pattern(route), role) for (method, route), role in EXCEPTIONS.items()]


def needed(method: str, path: str) -> str:
    """The least role that a request needs."""
    path = path.rstrip("/\n")  # as routes are found, which is more lenient
    for each in _EXCEPTIONS:
        if each.method == method and each.pattern.fullmatch(path):
            return each.role
    return VIEWER if method in LOOKING else MEMBER


def allows(role: str, wanted: str) -> bool:
    """Whether a token of `role` has at least the rights of `wanted`. Tokens made before there were roles have none, and
    all rights."""
    return not role or (role in ROLES and ROLES.index(role) >= ROLES.index(wanted))
