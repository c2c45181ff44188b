"""Which images something needs. Owns no state, does no I/O.

An image is needed by every version of a function that an app can still run: those of its present version and of
versions that can be rolled back to, versions on their way into the app, those with calls or containers that have not
ended; and by every name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

PUBLISHING_S = 3600.0
"""A version of an app that is not there yet belongs to a publish that was broken off, if it is older."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppView:
    """An app."""

    stopped: bool
    version: int
    functions: Collection[str]
    """Ids of its present functions, and of those of versions that are remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """One version of one function."""

    function_id: str
    published_id: str
    app_id: str
    version: int
    image: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InUse:
    """What there is, at one moment."""

    apps: Mapping[str, AppView]
    versions: Iterable[VersionView]
    pooled: Collection[str]
    """Ids of functions that have a pool: somebody called them, and what is left of that has not ended."""
    named: Collection[str]
    """Images that have a name."""


def needed(found: InUse, now: float) -> frozenset[str]:
    """Ids of images that stay."""
    return frozenset(found.named) | {each.image for each in found.versions if _is_needed(each, found, now)}


def _is_needed(version: VersionView, found: InUse, now: float) -> bool:
    if version.function_id in found.pooled:
        return True
    app = found.apps.get(version.app_id)
    if app is None:
        return now - version.created_at < PUBLISHING_S
    if version.version > app.version:
        return True  # its functions are written before the app that has them
    if app.stopped:
        return False
    return version.version == app.version or version.published_id in app.functions
