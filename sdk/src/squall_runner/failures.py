"""Exceptions as data: type, message, text trimmed to the user's frames, and the pickled original if possible."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Optional

from squall_runner.payload import dump_exception

MAX_TEXT_CHARACTERS = 16 * 1024
MAX_MESSAGE_CHARACTERS = 8 * 1024
MAX_PICKLED_BYTES = 48 * 1024
"""Less than the inline limit, so that a failure with its text fits one record."""

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep


def describe(error: BaseException, code_dir: str = "") -> tuple[dict[str, Any], bytes]:
    """The fields of a failure frame, and the pickled exception (empty if that is impossible or too large)."""
    meta = {
        "type": type(error).__qualname__,
        "module": type(error).__module__,
        "message": _shortened(_message(error), MAX_MESSAGE_CHARACTERS),
        "traceback": _shortened(_text(error, code_dir), MAX_TEXT_CHARACTERS),
    }
    return meta, _pickled(error)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001  # the user's __str__
        return f"<the exception's __str__ raised {type(broken).__name__}>"


def _pickled(error: BaseException) -> bytes:
    try:
        data = dump_exception(error)
    except Exception:  # noqa: BLE001  # the text is enough; __reduce__ may raise anything
        return b""
    return data if len(data) <= MAX_PICKLED_BYTES else b""


def _text(error: BaseException, code_dir: str) -> str:
    import traceback

    from squall_runner.load import LoadError

    if isinstance(error, LoadError):
        return f"{error}\n"  # it says itself what to do; the frames are all ours
    try:
        lines = traceback.format_exception(type(error), error, _users(error.__traceback__))
    except Exception as broken:  # noqa: BLE001  # __str__ and __repr__ of the user's classes run in there
        lines = [f"{type(error).__name__} (its traceback cannot be shown: {type(broken).__name__})\n"]
    text = "".join(lines)
    return text.replace(code_dir + "/", "/") if code_dir else text


def _users(tb: Optional[TracebackType]) -> Optional[TracebackType]:
    """The traceback from the first frame on that is neither ours nor the import system's."""
    first = tb
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    return first if first is not None else tb


def _is_ours(filename: str) -> bool:
    return filename.startswith((_OWN_FOLDER, "<frozen importlib")) or filename.endswith(
        os.sep + os.path.join("importlib", "__init__.py")
    )


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return text[: limit // 2] + f"\n... {len(text) - limit} characters left out ...\n" + text[-limit // 2 :]
