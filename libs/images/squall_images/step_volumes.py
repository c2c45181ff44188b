"""Volumes of build steps. Owns how a step names them; who brings and commits them is the builder's business.

A step has `volumes` (what its author calls them, by folder, which is part of its key), `scope` (whose they are) and
`_volumes` (which ones they are, which is part of nothing).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall_images.build_room import Bind, OnLine

VARIABLE = "SQUALL_BUILD_VOLUMES"
"""Tells the step's program what is mounted, as JSON, so that its `commit()` is no error: the step commits."""


@dataclass(frozen=True, slots=True)
class Brought:
    """Volumes that are ready for a step."""

    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


NOTHING_BROUGHT = Brought()
Volumes = Callable[[Sequence[Mapping[str, Any]], Path, OnLine], AbstractAsyncContextManager[Brought]]
"""Brings the volumes of references into a folder; what is in them when the block ends is committed, unless it raises.
Raises `SquallError`."""


@contextlib.asynccontextmanager
async def no_volumes(references: Sequence[Mapping[str, Any]], folder: Path, on_line: OnLine) -> AsyncIterator[Brought]:
    """For machines that have none."""
    raise ImageBuildError(
        "a build step needs volumes, which cannot be had here", fix="Build the image on a builder: deploy the app."
    )
    yield NOTHING_BROUGHT


@contextlib.asynccontextmanager
async def of_step(
    arguments: Mapping[str, Any], volumes: Volumes, folder: Path, on_line: OnLine
) -> AsyncIterator[Brought]:
    """What a step asks for, for as long as it runs."""
    if not arguments.get("volumes"):
        yield NOTHING_BROUGHT
        return
    if not arguments.get("scope"):
        raise ImageBuildError("a build step with volumes does not say whose they are", fix="Update the gateways.")
    references = arguments.get("_volumes")
    if not references:
        raise ImageBuildError(
            "a build step has lost its volumes", fix="Run or deploy the program that declares the image again."
        )
    async with volumes(references, folder, on_line) as brought:
        yield brought
