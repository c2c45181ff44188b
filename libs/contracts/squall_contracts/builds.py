"""Image builds: the command to the builder and the state of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall.spec import ImageSpec, ImageStep, digest
from squall_contracts.envelope import Message
from squall_contracts.objects import environment_token

IMAGES = "images"
IMAGE_NAMES, IMAGE_IDS = "name.", "im-"
"""Prefix of the keys of names in that bucket."""
BUILDING, READY, FAILED = "building", "ready", "failed"
WITHDRAWN, REMOVING, REMOVED = "withdrawn", "removing", "removed"
GONE = frozenset({WITHDRAWN, REMOVING, REMOVED})
"""Whoever wants such an image has it built again."""
REMOVED_S = 86_400.0
"""How long it is known that an image was removed: whoever was told before that it is there publishes within it."""
REMOVING_S = 180.0
"""Longest that a builder may take to remove an image; after that, whoever wants the image builds it."""


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
    lost: bool = False
    """A machine could not get the image although its record says "ready": it is built again unless it is there."""


@dataclass(frozen=True)
class ImageRecord(Message):
    """State of an image. Bucket `images`, key = image id; owner: builder. Its log is in LOGS under its id."""

    TYPE: ClassVar[str] = "image_record"

    image: str
    state: str
    """"building", "ready" or "failed". Of one that nothing needs: "withdrawn", from when on whoever wants it has it
    built again, "removing" while a builder removes it, "removed" for a day."""
    updated_at: float
    lock: tuple[str, ...] = ()
    """Exact packages, so that every node materialises the same environment."""
    python: str = ""
    error: Mapping[str, Any] = field(default_factory=dict)
    """state failed: wire form of an ImageBuildError."""
    build_ms: float = 0.0
    layers: tuple[str, ...] = ()
    """Keys of the layers that it was made as, bottom first."""
    manifest: str = ""
    """Digest of its manifest in the registry, by which agents take it; empty if it is in none."""
    spec: ImageSpec | None = None
    """What it was made of, so that it can be found by its id."""
    workspace: str = ""
    """Who asked for it last."""


class PruneStep:
    """What builders are told about images that nothing needs."""

    LOOK = "look"
    """Say what would be removed."""
    WITHDRAW = "withdraw"
    """Let them be had no longer; then it is looked once more whether something needs them."""
    REMOVE = "remove"
    """Remove those that are still withdrawn."""


@dataclass(frozen=True)
class PruneImages(Message):
    """Command to every builder: a gateway found images that nothing needs. Core subject `prune.r.builders`. Answered by
    `PruneAnswer` messages to `reply_to`: one that says who is there, then one with what was done."""

    TYPE: ClassVar[str] = "prune_images"

    reply_to: str
    step: str
    images: tuple[str, ...]
    since: float
    """Images that were asked for after it stay."""


@dataclass(frozen=True)
class PruneAnswer(Message):
    """A builder's answer to `PruneImages`."""

    TYPE: ClassVar[str] = "prune_answer"

    builder: str
    done: bool = True
    """False: it has only begun."""
    withdrawn: tuple[str, ...] = ()
    images: int = 0
    """Removed, or that would be."""
    layers: int = 0
    bytes: int = 0
    kept_bytes: int = 0
    """Of layers that stay."""
    in_registry: int = 0
    """Images that were removed there."""
    error: str = ""


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


def scoped(image: ImageSpec, workspace: str, environment: str) -> ImageSpec:
    """The image with it said whose the secrets, volumes and functions of its steps are: made with them, it is nobody
    else's image. What its author says about that does not count."""
    steps = []
    for step in image.steps:
        arguments = {name: value for name, value in step.arguments.items() if name != "scope"}
        if arguments.get("secrets") or arguments.get("volumes"):
            arguments["scope"] = f"{workspace}/{environment}"
        elif (
            step.kind == "run_function"
        ):  # the author says what its code hashes to; the builder gets the code from elsewhere
            arguments["scope"] = workspace
        steps.append(ImageStep(step.kind, arguments))
    return ImageSpec(image.python_version, tuple(steps))


def image_asked_key(image: str) -> str:
    """Key that was written when somebody asked for an image that was there, at most once in a minute."""
    return f"asked.{image}"


def image_user_key(workspace: str, image: str) -> str:
    """Key that says that a workspace asked for an image that another one had asked for before."""
    return f"user.{workspace}.{image}"


def image_name_key(workspace: str, environment: str, name: str) -> str:
    """Key of a name."""
    return f"{image_names_of(workspace, environment)}{digest(name)[:24]}"


def image_names_of(workspace: str, environment: str) -> str:
    """Prefix of the keys of the names of an environment."""
    return f"{IMAGE_NAMES}{workspace}.{environment_token(environment)}."
