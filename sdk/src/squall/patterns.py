"""dockerignore patterns: `*`, `**`, `?`, `[...]`, and `!` for exceptions; the last pattern that matches decides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import Pattern
from typing import Callable


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that tells whether a path (with `/`, relative to the folder) is matched, itself or by its folder."""
    rules: list[tuple[bool, Pattern[str]]] = []
    for pattern in patterns:
        pattern = pattern.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep = pattern.startswith("!")
        rules.append((not keep, _compile(pattern.lstrip("!").strip().strip("/"))))

    def matches(path: str) -> bool:
        found = False
        for ignored, rule in rules:
            if ignored != found and rule.match(path):
                found = ignored
        return found

    return matches


def _compile(pattern: str) -> Pattern[str]:
    text, position = "", 0
    while position < len(pattern):
        rest = pattern[position:]
        if rest.startswith("**/"):
            text, position = text + "(?:.*/)?", position + 3
        elif rest.startswith("**"):
            text, position = text + ".*", position + 2
        elif rest[0] == "*":
            text, position = text + "[^/]*", position + 1
        elif rest[0] == "?":
            text, position = text + "[^/]", position + 1
        elif rest[0] == "[" and "]" in rest[2:]:
            end = rest.index("]", 2)
            text, position = text + rest[: end + 1].replace("[!", "[^", 1), position + end + 1
        else:
            text, position = text + re.escape(rest[0]), position + 1
    return re.compile(f"{text}(?:/.*)?\\Z", re.DOTALL)  # a matched folder takes everything below it with it
