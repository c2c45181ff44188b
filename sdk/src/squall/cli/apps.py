"""`squall app list` and `squall app stop`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Optional

from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.errors import UsageError
from squall.http_api.routes import Route

COLUMNS = (
    ("APP", "app_id"),
    ("NAME", "name"),
    ("STATE", "state"),
    ("VERSION", "version"),
    ("FUNCTIONS", "functions"),
    ("CONTAINERS", "containers"),
    ("UPDATED", "updated"),
)


def list_apps(*, environment: Optional[str], as_json: bool) -> int:
    """Prints the apps of an environment."""
    with for_command() as session:
        found = lookup.apps(session.client, environment)
    rows = [dataclasses.asdict(app) for app in sorted(found, key=lambda app: app.updated_at, reverse=True)]
    shown = rows if as_json else [{**row, "updated": table.ago(row["updated_at"])} for row in rows]
    table.show(shown, COLUMNS, as_json=as_json, empty="No apps. `squall deploy app.py` makes one.")
    return 0


def stop(name: str, *, yes: bool, environment: Optional[str]) -> int:
    """Stops an app. On a terminal it asks first, unless `yes`."""
    with for_command() as session:
        app = lookup.app(session.client, name, environment)
        if not yes and sys.stdin is not None and sys.stdin.isatty():
            sys.stderr.write(f"Stop app {app.name} ({app.app_id})? Its calls are cancelled. [y/N] ")
            sys.stderr.flush()
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                raise UsageError("nothing was stopped", fix="Answer y, or add --yes.")
        session.client.json("POST", Route.APP_STOP.format(app=app.app_id), {"reason": "squall app stop"})
    sys.stdout.write(f"Stopped {app.name} ({app.app_id}).\n")
    return 0
