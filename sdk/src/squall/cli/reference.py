"""What `run` and `deploy` are pointed at: `file.py`, `file.py::name`, `-m pkg.mod::name`. Parses; loads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from squall.errors import UsageError

STDIN = "-"
MODULE_PART = re.compile(r"[\w-]+")
"""Python imports folders that no `import` statement can name, such as `07-web`."""


@dataclass(frozen=True)
class Reference:
    """A program, and what of it is meant."""

    text: str
    """As typed."""
    module: str
    """Import name: of the module, or the stem of the file."""
    path: str = ""
    """The file; "" for a module, "-" for standard input."""
    target: str = ""
    """What follows `::`: a name, `app.name` or `Cls.method`."""

    def with_target(self, target: str) -> str:
        """How to point at something else in the same program."""
        return f"{self.text.partition('::')[0]}::{target}"


def parse(text: str, as_module: bool = False) -> Reference:
    """The reference that a user typed. Raises `UsageError` with the right spelling."""
    program, separator, target = text.partition("::")
    if separator and not target:
        raise UsageError(f"{text!r} ends after `::`", fix=f"Name a function after it, or leave it out: `{program}`.")
    if any(not part.isidentifier() for part in target.split(".") if target):
        raise UsageError(
            f"{target!r} is not the name of a function", fix="Use `file.py::name` or `file.py::Class.method`."
        )
    if ":" in program and not Path(program).exists():
        name, _, rest = program.partition(":")
        raise UsageError(f"{text!r} has one colon", fix=f"Use two: `{name}::{rest or 'name'}`.")
    if as_module:
        return _module(text, program, target)
    if program == STDIN:
        return Reference(text=text, module="stdin", path=STDIN, target=target)
    return _file(text, program, target)


def _module(text: str, program: str, target: str) -> Reference:
    if program.endswith(".py") or "/" in program:
        raise UsageError(f"{program!r} is a file, not a module", fix=f"Leave out `-m`: `{text}`.")
    if not all(MODULE_PART.fullmatch(part) for part in program.split(".")):
        raise UsageError(f"{program!r} is not the name of a module", fix="Use `-m package.module`.")
    return Reference(text=f"-m {text}", module=program, target=target)


def _file(text: str, program: str, target: str) -> Reference:
    path = Path(program)
    if path.suffix != ".py" and not path.is_file():
        if all(part.isidentifier() for part in program.split(".")):
            raise UsageError(
                f"{program!r} is not a file", fix=f"Name a file (`{program}.py`), or a module with `-m {text}`."
            )
        raise UsageError(
            f"{program!r} is not a Python file", fix="Name a file that ends in .py, or a module with `-m`."
        )
    if "." in path.stem:
        renamed = path.with_name(path.stem.replace(".", "_") + path.suffix)
        raise UsageError(
            f"{program!r} has a dot in its name, so it cannot be imported", fix=f"Rename it, e.g. to {renamed}."
        )
    return Reference(text=text, module=path.stem, path=program, target=target)
