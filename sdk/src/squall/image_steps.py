"""Arguments of build steps: checked, in one canonical form, so that equal steps have equal keys."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

from squall.errors import InvalidError, UnimplementedArgument

NO_VOLUMES = (
    "Steps with volumes are run_commands and run_function; what others read can be copied with "
    "`add_local_dir(copy=True)`."
)
NO_BUCKETS = "Mount a Volume, or have a function of the app read the bucket: builds reach no addresses of your network."
FORCE_VARIABLE = "SQUALL_FORCE_BUILD"
_NONCE = f"{time.time_ns():x}"
"""Every step that this process wants anew has the same: one image, built once."""

if TYPE_CHECKING:
    from squall.secret import Secret
    from squall.spec import SecretRef, VolumeMount
    from squall.volume import Volume

Words = Union[str, Sequence[str]]
Reference = Callable[["Secret"], "SecretRef"]
Mounting = Callable[[str, "Volume"], "VolumeMount"]


class Finders(NamedTuple):
    """How what a recipe only names is found at the server."""

    secret: Reference
    volume: Mounting


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
    if not keywords:
        return
    from squall import hosted
    from squall.unimplemented import refuse_keywords

    hosted.take_out(where, keywords, hosted.OF_BUILDS)
    refuse_keywords(
        where,
        keywords,
        {
            "secrets": (
                (None, (), []),
                "Steps with secrets are run_commands, run_function and those of Python packages.",
            ),
            "registry_secret": ((None,), "Give credentials of registries to the engine that builds Dockerfiles."),
            "volumes": ((None, {}), NO_VOLUMES),
            "uv_version": ((None,), "Remove it: the builder has one uv."),
            "network_file_systems": ((None, {}), NO_VOLUMES),
            "env": ((None, {}), "Set variables with `Image.env` before the step."),
            "old_installer": ((False, None), "Remove it: uv installs what the lock file has."),
            "poetry_version": ((None, "latest"), "Remove it: uv installs what the lock file has."),
        },
    )


class Withheld:
    """Secrets of a step: where their values are is said to the builder alone."""

    def __init__(self, chosen: tuple[Secret, ...]) -> None:
        self._chosen = chosen

    def references(self, find: Finders) -> list[Any]:
        """Where they are."""
        from squall.spec import to_wire

        return [to_wire(find.secret(secret)) for secret in self._chosen]


class WithheldVolumes:
    """Volumes of a step: which ones they are is said to the builder alone."""

    def __init__(self, chosen: dict[str, Volume]) -> None:
        self._chosen = chosen

    def references(self, find: Finders) -> list[Any]:
        """Which ones they are; made, where that was asked for."""
        from squall.spec import to_wire

        return [to_wire(find.volume(path, volume)) for path, volume in self._chosen.items()]


def secrets(where: str, given: Any) -> dict[str, Any]:
    """`secrets=` of one step: what they are called is a part of the image, their values are not."""
    from squall.secret import checked

    chosen = checked(where, given)
    if not chosen:
        return {}
    return {"secrets": [secret.label for secret in chosen], "_secrets": Withheld(chosen)}


def volumes(where: str, given: Any, others: dict[str, Any]) -> dict[str, Any]:
    """`volumes=` of one step: what they are called is a part of the image, what is in them is not."""
    from squall.volume import Volume, checked_mounts

    if "network_file_systems" in others:
        from squall.old_names import take_old

        given = {**(given or {}), **(take_old(where, others, "network_file_systems", "`volumes=`") or {})}
    if not given:
        return {}
    chosen: dict[str, Volume] = {}
    for path, each in checked_mounts(given).items():
        if not isinstance(each, Volume):
            raise UnimplementedArgument(f"{where} cannot mount a bucket", fix=NO_BUCKETS)
        chosen[path] = each
    from squall.spec import VolumeMount, check_mounts

    called = {path: _called(volume) for path, volume in chosen.items()}
    check_mounts(tuple(VolumeMount(path, str(label["volume"])) for path, label in called.items()), ())
    return {"volumes": called, "_volumes": WithheldVolumes(chosen)}


def _called(volume: Volume) -> dict[str, Any]:
    """What says in a recipe which volume it is, and how it is mounted."""
    said: dict[str, Any] = {"volume": volume.label}
    if volume._read_only:
        said["read_only"] = True
    if volume._sub_path:
        said["sub_path"] = volume._sub_path
    return said
