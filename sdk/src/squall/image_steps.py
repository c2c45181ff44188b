"""Arguments of build steps: checked, in one canonical form, so that equal steps have equal keys."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from squall.errors import InvalidError, UnimplementedArgument

FORCE_VARIABLE = "SQUALL_FORCE_BUILD"
_NONCE = f"{time.time_ns():x}"
"""Every step that this process wants anew has the same: one image, built once."""

Words = Union[str, Sequence[str]]


def forced(force_build: bool) -> dict[str, Any]:
    """What makes a step another one than all before it."""
    wanted = force_build or os.environ.get(FORCE_VARIABLE, "") not in ("", "0")
    return {"forced": _NONCE} if wanted else {}


def python_version(version: Any) -> str:
    """Such as "3.12". Raises `TypeError`, `InvalidError`."""
    if not isinstance(version, str):
        raise TypeError(f'python_version must be text such as "3.12", got {version!r}')
    parts = version.split(".")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
        raise InvalidError(f"python_version {version!r} is not valid", fix='Write it as "3.12".')
    return version


def packages(where: str, given: Sequence[Words]) -> list[str]:
    """Requirement strings, one by one or as lists. Raises `InvalidError` for options among them."""
    names = flat(where, given)
    for name in names:
        if not name.strip():
            raise InvalidError(f"{where}: a package has no name", fix="Give requirement strings or lists of them.")
        if name.lstrip().startswith("-"):
            raise InvalidError(
                f"{where}: {name!r} is an option, not a package",
                fix="Give options as `extra_options=` or their own argument.",
            )
    return names


def commands(where: str, given: Sequence[Words]) -> list[str]:
    """Command lines. Raises `InvalidError` for empty ones."""
    lines = flat(where, given)
    for line in lines:
        if not line.strip() or "\0" in line:
            raise InvalidError(f"{where}: {line!r} is not a command", fix="Give command lines or lists of them.")
    return lines


def words(where: str, given: Any) -> list[str]:
    """A program and its arguments."""
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise InvalidError(f"{where} takes a list of words, got {given!r}", fix='Write it as ["/bin/sh", "-c"].')
    return list(given)


def flat(where: str, given: Sequence[Words]) -> list[str]:
    """Strings and lists of strings as one list."""
    found: list[str] = []
    for item in given:
        found.extend([item] if isinstance(item, str) else item)
    for item in found:
        text(where, item)
    return found


def text(name: str, value: Any) -> str:
    """A string. Raises `InvalidError`."""
    if not isinstance(value, str):
        raise InvalidError(f"{name} must be text, got {value!r}")
    return value


def pip_options(
    find_links: Optional[str], index_url: Optional[str], extra_index_url: Optional[str], pre: bool, extra_options: str
) -> dict[str, Any]:
    """Only those that are given: a default that is spelled out builds nothing again."""
    named = {"find_links": find_links, "index_url": index_url, "extra_index_url": extra_index_url}
    arguments: dict[str, Any] = {name: text(name, value) for name, value in named.items() if value is not None}
    if pre:
        arguments["pre"] = True
    if extra_options:
        arguments["extra_options"] = text("extra_options", extra_options)
    return arguments


def variables(where: str, given: Optional[Mapping[str, str]]) -> dict[str, Any]:
    """`env=` of one step."""
    from squall.declaration import check_variables

    if not given:
        return {}
    check_variables(where, dict(given))
    return {"env": dict(given)}


def refuse(where: str, keywords: dict[str, Any]) -> None:
    """Raise for keywords of build steps that are not built, and for unknown ones."""
    from squall.unimplemented import refuse_keywords

    refuse_keywords(
        where,
        keywords,
        {
            "secrets": ((None, (), []), "Give credentials of your package index in the settings of the builder."),
            "secret": ((None,), "Give credentials of registries in the settings of the builder."),
            "registry_secret": ((None,), "Give credentials of registries in the settings of the builder."),
            "volumes": ((None, {}), "Copy what the step needs with `add_local_dir(copy=True)`."),
            "gpu": ((None,), "Remove it: builds run without GPUs; find out about them in `@squall.enter()`."),
            "uv_version": ((None,), "Remove it: the builder has one uv."),
            "network_file_systems": ((None, {}), "Copy what the step needs with `add_local_dir(copy=True)`."),
            "poetry_version": ((None, "latest"), "Remove it: uv installs what the lock file has."),
        },
    )


def not_served(where: str, name: str, fix: str) -> UnimplementedArgument:
    """The error for one argument."""
    return UnimplementedArgument(f"squall does not have `{name}=` of {where} yet", fix=fix)
