"""The user's program: imports it the way its containers will, and finds in it what a reference means.

The file is imported under its stem, the current folder and the file's folder are on the import path. What goes wrong
is told as `file:line`, with the line.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Callable

from squall.cli.reference import STDIN, Reference
from squall.errors import ProgramError


class UserCodeFailed(Exception):
    """The user's own code raised while it was being imported; the cause is its exception."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def load(reference: Reference) -> ModuleType:
    """Imports the program. Raises `ProgramError`, or `UserCodeFailed` from whatever the program raised."""
    _add_to_path(os.getcwd())
    if reference.path == STDIN:
        return _load_file(reference, _save_stdin())
    if reference.path:
        path = Path(reference.path)
        if not path.exists():
            raise ProgramError(f"there is no file {reference.path}", fix=_nearby(path))
        if path.is_dir():
            raise ProgramError(f"{reference.path} is a folder", fix="Name the Python file in it that holds the app.")
        return _load_file(reference, path.absolute())
    return _load_module(reference)


def _load_file(reference: Reference, path: Path) -> ModuleType:
    _add_to_path(str(path.parent))
    _check_stem(reference.module, path)
    spec = importlib.util.spec_from_file_location(reference.module, path)
    if spec is None or spec.loader is None:
        raise ProgramError(f"{path} is not a Python file", fix="Name a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[reference.module] = module
    run = functools.partial(spec.loader.exec_module, module)
    try:
        _execute(run, reference)
    except BaseException:
        sys.modules.pop(reference.module, None)
        raise
    return module


def _load_module(reference: Reference) -> ModuleType:
    try:
        found = importlib.util.find_spec(reference.module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ProgramError(
            f"there is no module {reference.module}",
            fix="Run from the folder that holds its top package, or install it; for a file leave out `-m`.",
        )
    _execute(functools.partial(importlib.import_module, reference.module), reference)
    return sys.modules[reference.module]


def _execute(run: Callable[[], object], reference: Reference) -> None:
    try:
        run()
    except SyntaxError as error:
        raise ProgramError(describe_syntax_error(error), fix="Correct the line.") from None
    except (Exception, SystemExit) as error:
        raise UserCodeFailed(f"importing {reference.path or reference.module}") from error


def describe_syntax_error(error: SyntaxError) -> str:
    """`file:line: message` with the line and a caret below the place."""
    where = f"{shorten(error.filename or '?')}:{error.lineno or 0}"
    text = (error.text or "").rstrip("\n")
    if not text:
        return f"{where}: {error.msg}"
    caret = " " * max(0, (error.offset or 1) - 1)
    return f"{where}: {error.msg}\n    {text}\n    {caret}^"


def shorten(filename: str) -> str:
    """A path relative to the current folder when it lies in it."""
    try:
        return str(Path(filename).resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return filename


def _check_stem(stem: str, path: Path) -> None:
    present = sys.modules.get(stem)
    standard = stem in getattr(sys, "stdlib_module_names", ()) or stem in sys.builtin_module_names
    if standard or (present is not None and stem != "__main__"):
        whose = "the standard library" if standard else f"the module {getattr(present, '__file__', None) or stem}"
        raise ProgramError(
            f"{shorten(str(path))} is named like {whose}, so neither could be imported",
            fix=f"Rename it, e.g. to {stem}_app.py.",
        )


def _add_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _save_stdin() -> Path:
    """Standard input as a file: its source must be there to be sent to containers."""
    folder = Path(tempfile.mkdtemp(prefix="squall-stdin-"))
    import atexit
    import shutil

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "stdin.py"
    path.write_bytes(sys.stdin.buffer.read())
    return path


def _nearby(path: Path) -> str:
    import difflib

    folder = path.parent if path.parent.is_dir() else Path()
    files = sorted(file.name for file in folder.glob("*.py"))
    close = difflib.get_close_matches(path.name, files, n=1)
    if close:
        return f"Did you mean {folder / close[0]}?"
    return f"Check the path; {folder.absolute()} has {', '.join(files[:5]) or 'no Python files'}."
