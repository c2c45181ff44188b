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
            value = take_old(where, others, old, f"`{new}=`")
            if value is not None and getattr(declaration, new) is not None:
                raise InvalidError(f"{where}: `{old}=` and `{new}=` are the same setting", fix=f"Remove `{old}=`.")
            declaration = declaration if value is None else declaration._replace(**{new: value})
    declaration = _with_old_volumes(where, declaration, others)
    if "allow_concurrent_inputs" in others:
        value = take_old(where, others, "allow_concurrent_inputs", "`@squall.concurrent(max_inputs=...)`")
        if value is not None:
            declaration = declaration._replace(max_inputs=value, target_inputs=value)
    if "secret" in others:
        value = take_old(where, others, "secret", "`secrets=[...]`")
        declaration = declaration._replace(secrets=(*declaration.secrets, *([] if value is None else [value])))
    if "mounts" in others:
        value = take_old(
            where, others, "mounts", "`Image.add_local_file`, `add_local_dir` and `add_local_python_source`"
        )
        if value and is_local():
            from squall.mounts import checked

            declaration = declaration._replace(mounts=checked(value))
    if "max_inputs" in others:
        value = take_old(where, others, "max_inputs", "`single_use_containers=True`")
        if value not in (None, 1):
            raise InvalidError(
                f"{where}: max_inputs={value!r} is not possible: a container takes one input, or any number",
                fix="Use `single_use_containers=True`, or leave it out.",
            )
        declaration = declaration._replace(single_use=declaration.single_use or value == 1)
    return declaration


def _with_old_volumes(where: str, declaration: Declaration, others: dict[str, Any]) -> Declaration:
    if "network_file_systems" not in others:
        return declaration
    volumes = take_old(where, others, "network_file_systems", "`volumes=`")
    return declaration._replace(volumes={**(declaration.volumes or {}), **(volumes or {})})


def take_old(where: str, others: dict[str, Any], old: str, new: str) -> Any:
    """The value of an old keyword, with a warning that says what it is called now."""
    if is_local():
        warn_renamed(f"`{old}=` of {where} is called {new} now")
    return others.pop(old)


def warn_renamed(message: str, declaring: bool = False) -> None:
    """At the user's line: something has another name now. Containers do not repeat what was said of declarations."""
    if declaring and not is_local():
        return
    warn_at_users_line(message, DeprecationWarning)


def warn_at_users_line(message: str, category: type[Warning]) -> None:
    """A warning as if it came from `__main__`: Python hides deprecations elsewhere."""
    frame = sys._getframe(1)
    # `from squall import Stub` asks through the import system, which is nobody's line.
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("squall", "importlib"):
        frame = frame.f_back
    place = (frame.f_code.co_filename, frame.f_lineno)
    warnings.warn_explicit(message, category, *place, module="__main__")
