"""Asks the person at the terminal before something is ended or removed; where nobody is, nothing is asked."""

from __future__ import annotations

import sys

from squall.errors import UsageError


def confirm(question: str, refused: str, yes: bool) -> None:
    """Returns if it may be done. Raises `UsageError` (`refused` says what was not done) for any answer but yes."""
    if yes or sys.stdin is None or not sys.stdin.isatty():
        return
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(refused, fix="Answer y, or add --yes.")
