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
from squall.ids import check_name

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
    rows, profile = settings(secrets=secrets), config.load().profile
    if as_json:
        told = {"file": str(path()), "profile": profile or None, "settings": rows}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return 0
    from squall.cli import table

    if profile:
        sys.stdout.write(f"Profile {profile}{_said_by()}\n")
    table.show(rows, (("SETTING", "name"), ("VALUE", "value"), ("FROM", "origin")), as_json=False, empty="")
    return 0


def settings(*, secrets: bool = False) -> list[dict[str, Any]]:
    """Every setting with its value and origin."""
    now = config.load()
    _, file = config.chosen(config.read_file(path()))
    place = f"{path()} [{now.profile}]" if now.profile else str(path())
    rows = []
    for name, variable in VARIABLES.items():
        value = now._asdict()[name]
        origin = f"${variable}" if os.environ.get(variable) else place if name in file else "default"
        if name == "token" and value and not secrets:
            value = f"{str(value)[:6]}… ({len(str(value))} characters; --secrets shows it)"
        rows.append({"name": name, "value": value, "origin": origin})
    return rows


def profiles(*, as_json: bool) -> int:
    """Prints the profiles of the file."""
    file, active = config.read_file(path()), config.load().profile
    rows = [
        {
            "profile": name or "(none)",
            "server_url": values.get("server_url", ""),
            "environment": values.get("environment", ""),
            "active": name == active,
        }
        for name, values in file.items()
        if name or set(values) - {"profile"} or not active
    ]
    from squall.cli import table

    columns = (("PROFILE", "profile"), ("SERVER", "server_url"), ("ENVIRONMENT", "environment"), ("ACTIVE", "active"))
    table.show(rows, columns, as_json=as_json, empty=f"No profiles: {path()} is not there.")
    return 0


def activate(profile: str) -> int:
    """Makes a profile the one that later commands use; "" for the settings at the top of the file."""
    file = config.read_file(path())
    if profile and profile not in file:
        there = ", ".join(name for name in sorted(file) if name) or "none"
        raise NotFoundError(
            f"there is no profile {profile!r} in {path()}",
            fix=f"There are: {there}. `squall config set --profile {profile} server_url URL` makes it.",
        )
    top = file.setdefault(config.TOP, {})
    top.pop("profile", None)
    if profile:
        top["profile"] = profile
    _write(path(), file)
    sys.stdout.write(f"✓ Commands use {f'the profile {profile}' if profile else 'no profile'} from now on.\n")
    if os.environ.get(config.PROFILE):
        sys.stdout.write(f"  But {config.PROFILE} is set in the environment, which wins.\n")
    return 0


def _said_by() -> str:
    return f", by {config.PROFILE}" if os.environ.get(config.PROFILE) else ""


def write(name: str, value: Optional[str], profile: Optional[str] = None) -> int:
    """Sets one setting in the file, of a profile or of the active one; None removes it."""
    if name not in config.FILE_KEYS:
        raise UsageError(f"there is no setting {name!r}", fix=f"There are: {', '.join(sorted(config.FILE_KEYS))}.")
    file, document = path(), config.read_file(path())
    if profile is None:
        profile, _ = config.chosen(document)
    else:
        check_name(profile, "profile")
    values = document.setdefault(profile, {})
    place = f"profile {profile} of {file}" if profile else str(file)
    if value is None:
        if name not in values:
            raise NotFoundError(
                f"{name} is not set in {place}", fix="`squall config show` tells what is set and where."
            )
        del values[name]
    else:
        values[name] = checked(name, value)
    _write(file, document)
    sys.stdout.write(f"✓ {name} is {'removed from' if value is None else 'set in'} {place}.\n")
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


def _write(file: Path, profiles: dict[str, dict[str, str]]) -> None:
    """All at once, readable by its owner only: a token may be in it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for profile, values in sorted(profiles.items()):  # the top, which has no name, comes first
        head = f"[{profile}]\n" if profile else ""
        parts.append(head + "".join(f"{name} = {_text(value)}\n" for name, value in sorted(values.items())))
    text = "\n".join(part for part in parts if part)
    descriptor, scratch = tempfile.mkstemp(dir=file.parent, prefix=".config-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(scratch, file)


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
