"""`squall environment`: makes, lists and removes environments."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Optional

from squall.cli import asking, table
from squall.cli.server import for_command
from squall.errors import UnimplementedError, UsageError
from squall.http_api.access import EnvironmentInfo
from squall.http_api.routes import Route
from squall.ids import check_name
from squall.spec import from_wire


def create(name: str, *, restricted: bool = False, as_json: bool) -> int:
    """Makes one."""
    if restricted:
        raise UnimplementedError(
            "environments have no members with roles: whoever has a token of the workspace may use all of them",
            fix="Leave out --restricted. `squall token create --scope caller` makes a token that can only make calls.",
        )
    with for_command() as session:
        made = session.client.json("POST", Route.ENVIRONMENTS, {"name": check_name(name, "environment")})
    told = f"✓ Made environment {name}. Use it with `-e {name}`, or `squall config set environment {name}`.\n"
    sys.stdout.write(json.dumps(made, indent=2) + "\n" if as_json else told)
    return 0


def list_environments(*, as_json: bool) -> int:
    """Prints those of the workspace."""
    with for_command() as session:
        answer, chosen = session.client.json("GET", Route.ENVIRONMENTS), session.environment
    rows = []
    for each in [from_wire(EnvironmentInfo, row) for row in answer["environments"]]:
        made = table.ago(each.created_at) if each.created_at else ""
        rows.append({**dataclasses.asdict(each), "made": made, "active": each.name == chosen})
    columns = (("ENVIRONMENT", "name"), ("MADE", "made"), ("ACTIVE", "active"))
    table.show(rows, columns, as_json=as_json, empty="No environments.")
    return 0


def rename(name: str, new_name: str) -> int:
    """Is refused."""
    raise UnimplementedError(
        f"environment {name!r} cannot be renamed: names of what is in it begin with its name",
        fix=f"`squall environment create {new_name}`, deploy there, then `squall environment delete {name}`.",
    )


def update(name: str, new_name: Optional[str], suffix: Optional[str]) -> int:
    """Is refused."""
    if new_name is not None:
        return rename(name, new_name)
    if suffix is not None:
        raise UnimplementedError(
            f"the web addresses of environment {name!r} have its own name in them, and no other",
            fix="Give functions addresses of your choice by `label=` or `custom_domains=`.",
        )
    raise UsageError("nothing is to be updated", fix="Environments have nothing that can be changed.")


def delete(name: str, *, yes: bool, as_json: bool) -> int:
    """Removes an empty one."""
    asking.confirm(f"Delete environment {name}?", "nothing was removed", yes)
    with for_command() as session:
        path = Route.ENVIRONMENT.format(environment=check_name(name, "environment"))
        gone = session.client.json("DELETE", path)
    sys.stdout.write(json.dumps(gone, indent=2) + "\n" if as_json else f"✓ Deleted environment {name}.\n")
    return 0
