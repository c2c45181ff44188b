"""Where the server is and what the client presents there. Reads the environment and one file; connects to nothing."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any, NamedTuple, Optional

from squall.errors import InvalidError
from squall.place import is_local

SERVER_URL, TOKEN, ENVIRONMENT, HOME = "SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_ENVIRONMENT", "SQUALL_HOME"
APP_ID = "SQUALL_APP_ID"
"""Inside a container: the app whose function runs there."""
IMAGE_ID = "SQUALL_IMAGE_ID"
"""Inside a container: the image that it was started from, if the agent says so."""

PROFILE = "SQUALL_PROFILE"
FILE_KEYS = {"server_url", "token", "environment", "async_warnings"}
TOP = ""
"""The part of the file before its first `[profile]`."""


class ServerAddress(NamedTuple):
    """A gateway: `http://host:port`, `https://...` or `unix:/path`, and the token for it."""

    url: str
    token: str


class Config(NamedTuple):
    """What the environment and the file say; the environment wins."""

    server_url: Optional[str]
    token: str
    environment: str
    async_warnings: bool
    profile: str = TOP
    """Whose settings of the file these are."""

    @property
    def address(self) -> Optional[ServerAddress]:
        """The configured server, or None when there is none."""
        return ServerAddress(self.server_url, self.token) if self.server_url else None


def home() -> Path:
    """Squall's folder of this user."""
    return Path(os.environ.get(HOME) or Path.home() / ".squall")


def load() -> Config:
    """The configuration of this moment. Raises `InvalidError` naming a line of the file that is not valid."""
    profile, file = chosen(read_file(home() / "config.toml")) if is_local() else (TOP, {})
    return Config(
        server_url=os.environ.get(SERVER_URL) or file.get("server_url"),
        token=os.environ.get(TOKEN) or file.get("token", ""),
        environment=os.environ.get(ENVIRONMENT) or file.get("environment", "main"),
        async_warnings=(os.environ.get("SQUALL_ASYNC_WARNINGS") or file.get("async_warnings", "1"))
        not in ("0", "false", "False"),
        profile=profile,
    )


def chosen(file: dict[str, dict[str, str]]) -> tuple[str, dict[str, str]]:
    """The active profile and its settings. It takes nothing from the top of the file: a token belongs to a server."""
    top = file.get(TOP, {})
    name = os.environ.get(PROFILE) or top.get("profile", TOP)
    if name not in file and name != TOP:
        raise InvalidError(
            f"there is no profile {name!r} in {home() / 'config.toml'}",
            fix=f"There are: {', '.join(sorted(set(file) - {TOP})) or 'none'}; make one with `squall config set`.",
        )
    return name, {key: value for key, value in file.get(name, {}).items() if key != "profile"}


def read_file(path: Path) -> dict[str, dict[str, str]]:
    """The keys of a configuration file, by profile; none when it does not exist.

    One `key = "value"` a line, below `[profile]`: the part of TOML that is needed, which Python 3.9 cannot parse."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    profile = TOP
    values: dict[str, dict[str, str]] = {TOP: {}}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]") and line.strip("[]. ").isprintable():
            profile = line[1:-1].strip()
            values.setdefault(profile, {})
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not (key in FILE_KEYS or (key == "profile" and profile == TOP)):
            raise InvalidError(
                f"{path}, line {number}: {line!r} is not a setting",
                fix=f'Write one of {sorted(FILE_KEYS)} as key = "value", or [profile] above those of a profile.',
            )
        values[profile][key] = _value(value, f"{path}, line {number}")
    return values


def _value(text: str, where: str) -> str:
    if text in ("true", "false"):
        return "1" if text == "true" else "0"
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        raise InvalidError(f"{where}: {text} is not a value", fix="Put text in double quotes.") from None


class Known:
    """`squall.config.config`: settings by their names, for programs that look at them."""

    def get(self, key: str, default: Any = None) -> Any:
        """A setting of this moment, `default` for one that is not set or does not exist."""
        value = load()._asdict().get(key)
        return default if value is None or value == "" else value

    def __getitem__(self, key: str) -> Any:
        return self.get(key)


config = Known()


def config_profiles() -> list[str]:
    """The profiles of the configuration file, by name."""
    return [name for name in read_file(home() / "config.toml") if name != TOP]


def __getattr__(name: str) -> Any:
    if name == "_profile":
        return load().profile or None
    raise AttributeError(f"module 'squall.config' has no attribute {name!r}")
