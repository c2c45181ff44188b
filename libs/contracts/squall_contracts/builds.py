"""Image builds: the command to the builder and the state of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall.spec import ImageSpec, digest
from squall_contracts.envelope import Message
from squall_contracts.objects import environment_token

IMAGES = "images"
IMAGE_NAMES = "name."
"""Prefix of the keys of names in that bucket."""


@dataclass(frozen=True)
class BuildImage(Message):
    """Command: build this image unless it exists. Subject `builds.r.<image>`, one builder takes it."""

    TYPE: ClassVar[str] = "build_image"

    image: str
    spec: ImageSpec
    requested_at: float
    traceparent: str = ""
    workspace: str = ""
    """Whose request it is; the image itself belongs to everybody who knows its recipe."""


@dataclass(frozen=True)
class ImageRecord(Message):
    """State of an image. Bucket `images`, key = image id; owner: builder. Its log is in LOGS under its id."""

    TYPE: ClassVar[str] = "image_record"

    image: str
    state: str
    """"building", "ready" or "failed"."""
    updated_at: float
    lock: tuple[str, ...] = ()
    """Exact packages, so that every node materialises the same environment."""
    python: str = ""
    error: Mapping[str, Any] = field(default_factory=dict)
    """state failed: wire form of an ImageBuildError."""
    build_ms: float = 0.0
    layers: tuple[str, ...] = ()
    """Keys of the layers that it was made as, bottom first."""
    spec: ImageSpec | None = None
    """What it was made of, so that it can be found by its id."""
    workspace: str = ""
    """Who asked for it last."""


@dataclass(frozen=True)
class ImageNameRecord(Message):
    """A name that means an image. Bucket `images`, key `image_name_key`; owner: gateway."""

    TYPE: ClassVar[str] = "image_name_record"

    name: str
    """`name:tag`."""
    image: str
    workspace: str
    environment: str
    updated_at: float


def image_name_key(workspace: str, environment: str, name: str) -> str:
    """Key of a name."""
    return f"{image_names_of(workspace, environment)}{digest(name)[:24]}"


def image_names_of(workspace: str, environment: str) -> str:
    """Prefix of the keys of the names of an environment."""
    return f"{IMAGE_NAMES}{workspace}.{environment_token(environment)}."
