"""Commands that users of such platforms type, and squall does not have: what to do instead."""

from __future__ import annotations

from squall.errors import UsageError

TOKENS = (
    "`squall up` makes a token for its user; others get one from `squall token create` and keep it in SQUALL_TOKEN."
)
SANDBOXES = (
    "Run commands with subprocess inside a function; `squall container exec` runs one in a container that is there."
)
INSTEAD: dict[tuple[str, ...], str] = {
    ("setup",): TOKENS,
    ("token", "new"): TOKENS,
    ("token", "set"): TOKENS,
    ("shell",): "`squall container exec CONTAINER COMMAND` runs one command in a container.",
    ("sandbox",): SANDBOXES,
    ("launch",): "Write a function with `@squall.web_server(port)` that starts the program.",
    ("nfs",): "Use volumes: `squall volume --help`.",
    ("billing",): "squall runs on your machines; there is no bill.",
    ("workspace",): "A token belongs to one workspace: `squall token list`.",
    ("dashboard",): "`squall app list`, `app logs` and `container list` show it; it has no pages of its own.",
}


def refuse(arguments: list[str]) -> None:
    """Raise for a command of that list."""
    for words, instead in INSTEAD.items():
        if tuple(arguments[: len(words)]) == words:
            raise UsageError(f"there is no `squall {' '.join(words)}`", fix=instead)
