"""dockerignore patterns: `*`, `**`, `?`, `[...]`, and `!` for exceptions; the last pattern that matches decides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from re import Pattern
from typing import Callable, Union

from squall.errors import InvalidError


class FilePatternMatcher:
    """A function of a path: whether one of these patterns matches it. `~matcher` is its opposite."""

    def __init__(self, *pattern: str) -> None:
        if not all(isinstance(each, str) for each in pattern):
            raise InvalidError(f"FilePatternMatcher takes patterns as text, got {pattern!r}")
        self._patterns = pattern
        self._matches = matcher(pattern)
        self._inverted = False

    @classmethod
    def from_file(cls, file_path: Union[str, os.PathLike[str]]) -> FilePatternMatcher:
        """The patterns of a file such as .dockerignore, one on a line."""
        try:
            with open(file_path, encoding="utf-8") as file:
                return cls(*file.read().splitlines())
        except OSError as error:
            raise InvalidError(f"the patterns in {os.fspath(file_path)} cannot be read: {error.strerror}") from error

    @property
    def patterns(self) -> tuple[str, ...]:
        """As they were given."""
        return self._patterns

    def __call__(self, file_path: Union[str, os.PathLike[str]]) -> bool:
        return self._matches(os.fspath(file_path).replace(os.sep, "/")) is not self._inverted

    def __invert__(self) -> FilePatternMatcher:
        opposite = type(self)(*self._patterns)
        opposite._inverted = not self._inverted
        return opposite

    def __repr__(self) -> str:
        return f"{'~' if self._inverted else ''}squall.FilePatternMatcher{self._patterns!r}"


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
