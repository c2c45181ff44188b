"""`squall token`: makes, lists and revokes tokens of the server. A token is shown once; the server keeps its hash."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Optional

from squall.cli import table
from squall.cli.logs import seconds
from squall.cli.server import for_command
from squall.http_api.access import NewToken, TokenInfo
from squall.http_api.routes import Route
from squall.spec import from_wire

COLUMNS = (
    ("TOKEN", "id"),
    ("NAME", "name"),
    ("SCOPE", "scope"),
    ("ROLE", "role"),
    ("MADE", "made"),
    ("EXPIRES", "expires"),
)


def create(name: str, *, scope: str, role: Optional[str], expires: Optional[str], as_json: bool) -> int:
    """Makes a token and prints it."""
    lifetime_s = None if expires is None else seconds(expires, "--expires")
    body = {"name": name, "scope": scope, "lifetime_s": lifetime_s, **({"role": role} if role else {})}
    with for_command() as session:
        made = from_wire(NewToken, session.client.json("POST", Route.TOKENS, body))
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(made), indent=2) + "\n")
        return 0
    sys.stdout.write(f"{made.token}\n")
    sys.stderr.write(
        f"✓ Made token {made.id} ({made.name}, scope {made.scope}{_role(made.role)}). It is not shown again.\n"
    )
    return 0


def create_proxy(name: str, *, expires: Optional[str], as_json: bool) -> int:
    """Makes a proxy token and prints its two parts."""
    lifetime_s = None if expires is None else seconds(expires, "--expires")
    body = {"name": name, "scope": "proxy", "lifetime_s": lifetime_s}
    with for_command() as session:
        made = from_wire(NewToken, session.client.json("POST", Route.TOKENS, body))
    key, _, secret = made.token.partition(".")
    if as_json:
        sys.stdout.write(json.dumps({**dataclasses.asdict(made), "key": key, "secret": secret}, indent=2) + "\n")
        return 0
    sys.stdout.write(f"Squall-Key: {key}\nSquall-Secret: {secret}\n")
    sys.stderr.write(f"✓ Made token {made.id} ({made.name}). Send both as headers; they are not shown again.\n")
    return 0


def list_tokens(*, as_json: bool) -> int:
    """Prints the tokens of the workspace, without those of containers."""
    with for_command() as session:
        answer = session.client.json("GET", Route.TOKENS)
    rows = [dataclasses.asdict(from_wire(TokenInfo, row)) for row in answer["tokens"]]
    shown = rows if as_json else [{**row, "made": table.ago(row["created_at"]), "expires": _until(row)} for row in rows]
    table.show(shown, COLUMNS, as_json=as_json, empty="No tokens.")
    return 0


def revoke(token: str, *, as_json: bool) -> int:
    """Makes a token useless, within five seconds."""
    with for_command() as session:
        gone = session.client.json("DELETE", Route.TOKEN.format(token=token))
    told = f"✓ Revoked {gone['id']} ({gone['name']}). Gateways that know it forget it within 5 s.\n"
    sys.stdout.write(json.dumps(gone, indent=2) + "\n" if as_json else told)
    return 0


def _role(role: str) -> str:
    return f", role {role}" if role else ""


def _until(row: dict[str, float]) -> str:
    import time

    left = row["expires_at"] - time.time()
    if not row["expires_at"]:
        return "never"
    return "expired" if left <= 0 else f"in {left / 3600:.0f} h" if left >= 3600 else f"in {left / 60:.0f} min"
