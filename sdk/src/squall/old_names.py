"""Old names of keywords: they work, and say what they are called now."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from squall.declaration import Declaration
from squall.errors import InvalidError
from squall.place import is_local

SETTINGS = {
    "keep_warm": "min_containers",
    "concurrency_limit": "max_containers",
    "container_idle_timeout": "scaledown_window",
}


def with_old_names(where: str, declaration: Declaration, others: dict[str, Any]) -> Declaration:
    """The declaration with what stands under old names in `others`; they are taken out there."""
    if not others:
        return declaration
    for old, new in SETTINGS.items():
        if old in others:
            value = _take(where, others, old, f"`{new}=`")
            if value is not None and getattr(declaration, new) is not None:
                raise InvalidError(f"{where}: `{old}=` and `{new}=` are the same setting", fix=f"Remove `{old}=`.")
            declaration = declaration if value is None else declaration._replace(**{new: value})
    if "allow_concurrent_inputs" in others:
        value = _take(where, others, "allow_concurrent_inputs", "`@squall.concurrent(max_inputs=...)`")
        if value is not None:
            declaration = declaration._replace(max_inputs=value, target_inputs=value)
    if "max_inputs" in others:
        value = _take(where, others, "max_inputs", "`single_use_containers=True`")
        if value not in (None, 1):
            raise InvalidError(
                f"{where}: max_inputs={value!r} is not possible: a container takes one input, or any number",
                fix="Use `single_use_containers=True`, or leave it out.",
            )
        declaration = declaration._replace(single_use=declaration.single_use or value == 1)
    return declaration


def _take(where: str, others: dict[str, Any], old: str, new: str) -> Any:
    if is_local():
        warn_renamed(f"`{old}=` of {where} is called {new} now")
    return others.pop(old)


def warn_renamed(message: str) -> None:
    """At the user's line. As if it were in `__main__`: Python hides this kind of warning elsewhere."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "squall":
        frame = frame.f_back
    place = (frame.f_code.co_filename, frame.f_lineno)
    warnings.warn_explicit(message, DeprecationWarning, *place, module="__main__")
