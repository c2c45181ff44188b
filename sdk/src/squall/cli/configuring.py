"""`squall config`: shows and writes the file `~/.squall/config.toml`. The environment wins over the file."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional

from squall import config
from squall.errors import NotFoundError, UsageError

VARIABLES = {
    "server_url": config.SERVER_URL,
    "token": config.TOKEN,
    "environment": config.ENVIRONMENT,
    "async_warnings": "SQUALL_ASYNC_WARNINGS",
}


def path() -> Path:
    """The file."""
    return config.home() / "config.toml"


def show(*, as_json: bool, secrets: bool) -> int:
    """Prints each setting and where it comes from."""
    rows = settings(secrets=secrets)
    if as_json:
        sys.stdout.write(json.dumps({"file": str(path()), "settings": rows}, indent=2) + "\n")
        return 0
    from squall.cli import table

    table.show(rows, (("SETTING", "name"), ("VALUE", "value"), ("FROM", "origin")), as_json=False, empty="")
    return 0


def settings(*, secrets: bool = False) -> list[dict[str, Any]]:
    """Every setting with its value and origin."""
    file, now = config.read_file(path()), config.load()._asdict()
    rows = []
    for name, variable in VARIABLES.items():
        value = now[name]
        origin = f"${variable}" if os.environ.get(variable) else str(path()) if name in file else "default"
        if name == "token" and value and not secrets:
            value = f"{str(value)[:6]}… ({len(str(value))} characters; --secrets shows it)"
        rows.append({"name": name, "value": value, "origin": origin})
    return rows


def write(name: str, value: Optional[str]) -> int:
    """Sets one setting in the file; None removes it."""
    if name not in config.FILE_KEYS:
        raise UsageError(f"there is no setting {name!r}", fix=f"There are: {', '.join(sorted(config.FILE_KEYS))}.")
    file = path()
    values = config.read_file(file)
    if value is None:
        if name not in values:
            raise NotFoundError(f"{name} is not set in {file}", fix="`squall config show` tells what is set and where.")
        del values[name]
    else:
        values[name] = checked(name, value)
    _write(file, values)
    sys.stdout.write(f"✓ {name} is {'removed from' if value is None else 'set in'} {file}.\n")
    variable = VARIABLES.get(name, "")
    if os.environ.get(variable):
        sys.stdout.write(f"  But {variable} is set in the environment, which wins.\n")
    return 0


def checked(name: str, value: str) -> str:
    """`value` itself. Raises `UsageError` for what the setting cannot be."""
    if name == "server_url" and not value.startswith(("http://", "https://", "unix:")):
        raise UsageError(f"{value!r} is not a server URL", fix="It begins with http://, https:// or unix:.")
    if name == "async_warnings" and value not in ("0", "1", "true", "false"):
        raise UsageError(f"{value!r} is not 0 or 1", fix="0 turns the warnings off.")
    if "\n" in value or "\r" in value or not value:
        raise UsageError(
            f"the value of {name} must be one line of text", fix="`squall config unset` removes a setting."
        )
    return value


def _write(file: Path, values: dict[str, str]) -> None:
    """All at once, readable by its owner only: a token may be in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name} = {_text(value)}\n" for name, value in sorted(values.items()))
    descriptor, scratch = tempfile.mkstemp(dir=file.parent, prefix=".config-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(scratch, file)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
