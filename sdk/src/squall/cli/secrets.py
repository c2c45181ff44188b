"""`squall secret`: makes, changes, lists and removes secrets. Values go to the server and never come back."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, Optional

from squall.cli import asking, table
from squall.cli.server import for_command
from squall.client import query
from squall.errors import NotFoundError, UsageError
from squall.http_api.routes import Route
from squall.http_api.storage import SecretInfo
from squall.objects import path_of
from squall.spec import from_wire

COLUMNS = (("NAME", "name"), ("KEYS", "keys"), ("MADE", "made"), ("CHANGED", "changed"))


def create(
    name: str,
    pairs: Sequence[str],
    *,
    from_dotenv: Optional[str],
    from_json: Optional[str],
    force: bool,
    environment: Optional[str],
    as_json: bool,
) -> int:
    """Makes a secret."""
    values = _values(pairs, from_dotenv, from_json)
    if not values:
        raise UsageError("a secret needs values", fix="Write KEY=VALUE, or use --from-dotenv or --from-json.")
    with for_command() as session:
        place = environment or session.environment
        body = {"name": name, "environment": place, "values": values, "replace": force}
        made = session.client.json("POST", Route.SECRETS, body)
    return _told(made, f"✓ Made secret {name} ({', '.join(made['keys'])}).\n", as_json)


def update(name: str, pairs: Sequence[str], *, environment: Optional[str], as_json: bool) -> int:
    """Sets some values of a secret; `KEY=` with nothing after it removes one."""
    values = {key: value or None for key, value in _pairs(pairs).items()}
    if not values:
        raise UsageError("nothing to change", fix="Write KEY=VALUE; KEY= removes that one.")
    with for_command() as session:
        body = {"environment": environment or session.environment, "values": values}
        changed = session.client.json("POST", path_of("SECRET", name), body)
    told = f"✓ Changed secret {name} ({', '.join(changed['keys'])}). Containers that start from now on see it.\n"
    return _told(changed, told, as_json)


def list_secrets(*, environment: Optional[str], as_json: bool) -> int:
    """Prints names and keys."""
    with for_command() as session:
        answer = session.client.json("GET", query(Route.SECRETS, environment=environment or session.environment))
    rows = [dataclasses.asdict(from_wire(SecretInfo, row)) for row in answer["objects"]]
    rows.sort(key=lambda row: row["name"])
    if not as_json:
        for row in rows:
            row.update(keys=", ".join(row["keys"]))
            row.update(made=table.ago(row["created_at"]), changed=table.ago(row["updated_at"]))
    table.show(rows, COLUMNS, as_json=as_json, empty="No secrets.")
    return 0


def delete(name: str, *, yes: bool, allow_missing: bool, environment: Optional[str], as_json: bool) -> int:
    """Removes a secret."""
    asking.confirm(f"Delete secret {name}?", "nothing was removed", yes)
    with for_command() as session:
        path = query(path_of("SECRET", name), environment=environment or session.environment)
        try:
            gone = session.client.json("DELETE", path)
        except NotFoundError:
            if not allow_missing:
                raise
            return _told({"name": name, "deleted": False}, f"There is no secret {name}.\n", as_json)
    told = f"✓ Deleted secret {name}. Functions that declare it cannot start until there is one again.\n"
    return _told(gone, told, as_json)


def _told(answer: Any, text: str, as_json: bool) -> int:
    sys.stdout.write(json.dumps(answer, indent=2) + "\n" if as_json else text)
    return 0


def _values(pairs: Sequence[str], from_dotenv: Optional[str], from_json: Optional[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    if from_dotenv is not None:
        from dotenv import dotenv_values

        with _opened(from_dotenv, "--from-dotenv") as file:
            values.update({key: value for key, value in dotenv_values(stream=file).items() if value is not None})
    if from_json is not None:
        values.update(_of_json(from_json))
    return {**values, **_pairs(pairs)}


def _of_json(path: str) -> dict[str, str]:
    with _opened(path, "--from-json") as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise UsageError(f"--from-json {path}: not JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UsageError(f"--from-json {path}: must be an object of texts")
    return found


def _opened(path: str, option: str) -> Any:
    """The file; `-` is standard input."""
    if path == "-":
        return sys.stdin
    try:
        return open(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}") from None


def _pairs(pairs: Sequence[str]) -> dict[str, str]:
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            # The pair itself is not shown: it may be a value whose key was forgotten.
            raise UsageError("every value must be written KEY=VALUE", fix='Write e.g. API_KEY="abc".')
        values[key] = value
    return values
