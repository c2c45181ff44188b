"""`squall app history` and `squall app rollback`: versions of deployed apps."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from typing import Optional

from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.errors import UsageError
from squall.http_api.apps import AppVersion, PublishedApp
from squall.http_api.routes import Route
from squall.spec import from_wire

COLUMNS = (
    ("VERSION", "shown"),
    ("TAG", "tag"),
    ("DEPLOYED", "deployed"),
    ("FUNCTIONS", "functions"),
    ("CURRENT", "current"),
)


def history(name: str, *, environment: Optional[str], as_json: bool) -> int:
    """Prints the versions of an app, newest first."""
    with for_command() as session:
        app = lookup.app(session.client, name, environment)
        answer = session.client.json("GET", Route.APP_HISTORY.format(app=app.app_id))
    rows = [dataclasses.asdict(from_wire(AppVersion, row)) for row in answer["versions"]]
    shown = (
        rows if as_json else [{**row, "shown": _shown(row), "deployed": table.ago(row["deployed_at"])} for row in rows]
    )
    table.show(shown, COLUMNS, as_json=as_json, empty=f"{app.name} was never deployed, so it has no versions.")
    return 0


def rollback(
    name: str, version: Optional[str], *, strategy: str = "rolling", environment: Optional[str], as_json: bool
) -> int:
    """Makes an earlier version the present one."""
    wanted = None if version is None else number(version)
    with for_command() as session:
        app = lookup.app(session.client, name, environment)
        body = session.client.json(
            "POST", Route.APP_ROLLBACK.format(app=app.app_id), {"version": wanted, "strategy": strategy}
        )
        answer = from_wire(PublishedApp, body)
        versions = session.client.json("GET", Route.APP_HISTORY.format(app=app.app_id))["versions"]
    to = next((row["rolled_back_to"] for row in versions if row["version"] == answer.version), 0)
    if as_json:
        sys.stdout.write(json.dumps({**dataclasses.asdict(answer), "rolled_back_to": to}, indent=2) + "\n")
        return 0
    sys.stdout.write(f"✓ {answer.name} runs version {to} again, as version {answer.version}.\n")
    if strategy == "recreate":
        sys.stdout.write("  Containers of other versions end now; what ran in them starts again.\n")
    else:
        sys.stdout.write("  New calls go there; calls that were accepted before end on the version they began with.\n")
    return 0


def number(version: str) -> int:
    """`3` or `v3`. Raises `UsageError`."""
    found = re.fullmatch(r"v?([1-9][0-9]{0,8})", version)
    if not found:
        raise UsageError(f"{version!r} is not a version", fix="Name one of `squall app history`, such as 3 or v3.")
    return int(found[1])


def _shown(row: dict[str, object]) -> str:
    back = row["rolled_back_to"]
    return f"v{row['version']} (= v{back})" if back else f"v{row['version']}"
