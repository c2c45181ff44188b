"""Bodies about images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional


@dataclass(frozen=True)
class ImageInfo:
    """One row of GET /v1/images."""

    image: str
    state: str
    """"building", "ready" or "failed"."""
    updated_at: float
    python: str = ""
    packages: tuple[str, ...] = ()
    """`name==version`."""
    layers: tuple[str, ...] = ()
    build_ms: float = 0.0
    error: str = ""
    names: tuple[str, ...] = ()
    """What it was published as, `name:tag`, in the environment that was asked for."""
    spec: Optional[Mapping[str, Any]] = None
    """The recipe; only where one image was asked for."""


@dataclass(frozen=True)
class PruneImages:
    """POST /v1/images/prune: images of the workspace that nothing needs."""

    dry_run: bool = False
    older_than_s: float = 3600.0
    """Only those that were built, and asked for, before that."""


@dataclass(frozen=True)
class PrunedStore:
    """What a builder or a node removed, or would remove."""

    kind: str
    """"builder" or "node"."""
    name: str
    images: int = 0
    layers: int = 0
    bytes: int = 0
    """Of these layers."""
    kept_bytes: int = 0
    """Of layers that stay there."""
    in_registry: int = 0
    """Images that left the registry; it frees their space when it collects its garbage."""
    error: str = ""


@dataclass(frozen=True)
class PrunedImages:
    """The answer."""

    images: tuple[str, ...] = ()
    """Ids of images that nothing needs."""
    stores: tuple[PrunedStore, ...] = ()
    dry_run: bool = False
