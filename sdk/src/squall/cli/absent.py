"""Commands that users of such platforms type, and squall does not have: what to do instead."""

from __future__ import annotations

from squall.errors import UsageError

TOKENS = (
    "`squall up` makes a token for its user; others get one from `squall token create` and keep it in SQUALL_TOKEN."
)
SANDBOXES = (
    "Run commands with subprocess inside a function; `squall container exec` runs one in a container that is there."
)
PAGES = "`squall app list`, `app logs`, `container list` and `volume ls` show it; it has no pages of its own."
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
    ("app", "dashboard"): PAGES,
    ("volume", "dashboard"): PAGES,
    (
        "app",
        "rollover",
    ): "Deploy it again: `squall deploy FILE --strategy recreate` ends earlier containers at once.",
    ("container", "logs"): "`squall logs APP --container CONTAINER` prints what it wrote.",
    ("token", "info"): "`squall status` shows the server and token in use, `squall token list` all tokens.",
    ("config", "set-environment"): "`squall config set environment NAME`.",
    ("curl",): "Use curl with the headers Modal-Key and Modal-Secret of `squall token proxy create`.",
    ("cluster",): 'Ask for several GPUs of one machine with `gpu="H100:8"`.',
    ("endpoint",): "Write a function with `@squall.web_server(port)` that starts the program.",
    ("dashboard",): PAGES,
    ("changelog",): "CHANGELOG.md of the release says what has changed.",
}


def refuse(arguments: list[str]) -> None:
    """Raise for a command of that list."""
    for words, instead in INSTEAD.items():
        if tuple(arguments[: len(words)]) == words:
            raise UsageError(f"there is no `squall {' '.join(words)}`", fix=instead)
