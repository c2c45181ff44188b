"""Finds the interpreter of an image, by asking it in a build room."""

from __future__ import annotations

import json
from collections.abc import Mapping

from squall.errors import ImageBuildError
from squall_images.build_room import Room, Work
from squall_images.layered import Python

PROBE_TIMEOUT_S = 60.0
NAMES = ("python3", "python")
_MARK = "squall-python:"
_ASK = f"""
import json, os, platform, sys, sysconfig
paths = sysconfig.get_paths()
print({_MARK!r} + json.dumps(dict(executable=os.path.realpath(sys.executable), version=list(sys.version_info[:3]),
    site_packages=paths["purelib"], scripts=paths["scripts"], data=paths["data"], libc=" ".join(platform.libc_ver()))))
"""


async def find(room: Room, env: Mapping[str, str]) -> Python | None:
    """The first interpreter on the image's PATH; None if there is none that answers."""
    for name in NAMES:
        lines: list[str] = []
        work = Work(
            command=[name, "-I", "-B", "-c", _ASK], env=env, workdir="/", timeout_s=PROBE_TIMEOUT_S, proxied=False
        )
        try:
            await room.run("python", work, lines.append)
        except ImageBuildError as error:
            if error.data.get("exit_code") != 127:  # something else than "not found"
                raise
            continue
        for line in lines:
            if line.startswith(_MARK):
                return _told(line[len(_MARK) :])
    return None


def _told(text: str) -> Python:
    """What an interpreter says of itself. It is a program of the image's, and its paths are used on the builder."""
    try:
        found = json.loads(text)
        first, second, third = map(int, found.pop("version"))
        python = Python(**{name: str(value) for name, value in found.items()}, version=(first, second, third))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ImageBuildError(f"the image's Python says something else than what it is: {error!r}") from error
    for path in (python.executable, python.site_packages, python.scripts, python.data):
        if not path.startswith("/") or ".." in path.split("/"):
            raise ImageBuildError(f"the image's Python names a folder that no image has: {path!r}")
    return python


def fits(python: Python | None, wanted: str) -> None:
    """Raise `ImageBuildError` unless it is the wanted version; "" is any."""
    if not wanted:
        return
    full = "" if python is None else ".".join(map(str, python.version))
    if python is None or not f"{full}.".startswith(f"{wanted}."):
        raise ImageBuildError(
            f"the image was to have Python {wanted}, and has {full or 'none'}",
            fix="Correct python_version= or add_python=, or the base that an operator registered.",
        )
