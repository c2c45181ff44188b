"""What a bare interpreter imports before it is forked: what users' files, and the packages that they import, ask for
first of `squall` and of the standard library.

Nothing of the image's packages and nothing of a user's. Nor what reads the environment or the clock when it is
imported, such as OpenSSL behind `hashlib`: a fork learns its variables later, and may wait for long.
"""

from __future__ import annotations

import importlib
import os
import sys

from squall_runner.settings import Settings

NAMES = ("App", "Cls", "Image", "Secret", "current_function_call_id", "method", "Cron", "Retries", "fastapi_endpoint")
MODULES = (
    *("squall.config", "squall.spec"),  # what an image says of itself, in `with image.imports()`
    *("ctypes", "datetime", "inspect", "numbers", "pathlib", "platform", "textwrap"),  # what numpy and others ask for
)
SAID_CHARACTERS = 1000
_imported: set[str] = set()


def load() -> str:
    """In a bare interpreter, before it forks. Why nothing is imported ahead; "" = it is."""
    before = set(sys.modules)
    try:
        squall = importlib.import_module("squall")
        for name in NAMES:
            getattr(squall, name)
        for name in MODULES:
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  # whatever it is, containers import for themselves then
        _imported.update(set(sys.modules) - before)
        forget()
        return f"{type(error).__name__}: {error}"[:SAID_CHARACTERS]
    _imported.update(set(sys.modules) - before)
    return ""


def settle(settings: Settings) -> None:
    """In a fork that learns whose it is: a file of the user's comes before a module of the same name, as it does in an
    interpreter that has imported nothing."""
    if _imported and _names_in(settings.code_root) & {name.partition(".")[0] for name in _imported}:
        forget()


def forget() -> None:
    """All of it is imported anew."""
    for name in _imported:
        sys.modules.pop(name, None)
    _imported.clear()


def _names_in(folder: str) -> set[str]:
    try:
        return {name.partition(".")[0] for name in os.listdir(folder)}
    except OSError:
        return set()
