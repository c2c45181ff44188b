"""Finds an app by what a user calls it: its id, or its name in an environment."""

from __future__ import annotations

from typing import Optional

from squall.client import Client, query
from squall.errors import NotFoundError
from squall.http_api.apps import AppSummary
from squall.http_api.routes import Route
from squall.spec import from_wire

_PREFERENCE = {"deployed": 0, "detached": 1, "ephemeral": 2, "stopped": 3}


def apps(client: Client, environment: Optional[str]) -> list[AppSummary]:
    """All apps of an environment (None: the configured one)."""
    from squall import config

    answer = client.json("GET", query(Route.APPS, environment=environment or config.load().environment))
    return [from_wire(AppSummary, row) for row in answer["apps"]]


def app(client: Client, name: str, environment: Optional[str]) -> AppSummary:
    """The app of that id or name: the deployed one if there is, else the newest. Raises `NotFoundError`."""
    present = apps(client, environment)
    found = [candidate for candidate in present if name in (candidate.app_id, candidate.name)]
    if not found:
        names = sorted({candidate.name for candidate in present if candidate.state != "stopped"})
        known = f"There are: {', '.join(names[:10])}." if names else "No app is there; deploy one with `squall deploy`."
        raise NotFoundError(f"there is no app {name!r}", fix=known)
    return min(found, key=lambda candidate: (_PREFERENCE.get(candidate.state, 9), -candidate.created_at))
