"""Images of templates' memory on a machine's disk: which leave, and when to try again to make one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from squall.spec import digest

SUPERSEDED_S = 600.0
"""After a newer one of the same function was asked for, unless it is still used."""
UNUSED_S = 24 * 3600.0
FIRST_PAUSE_S, LATER_PAUSES = 60.0, 10.0
MOST_FAILURES = 3
"""Of one key; then never again in the life of this agent."""


@dataclass(slots=True, kw_only=True)
class ImageOnDisk:
    """What counts about one."""

    key: str
    function: str
    """See `function_of`."""
    size: int
    """Bytes on the disk."""
    used_at: float
    users: int = 0
    """Containers that were restored from it, or are being."""
    superseded: bool = False
    """Another one of its function was asked for after it."""


def image_key(template_key: str, runsc: str, terms: Mapping[str, object]) -> str:
    """Images with equal keys may be restored alike: all that a template's key has, which program reads it, and what is
    part of a container's memory without being part of its template's key, such as sizes of its disks in memory."""
    return "mi-" + digest({"template": template_key, "runsc": runsc, "terms": dict(terms)})[:24]


def function_of(app: str, name: str, params: Mapping[str, object] | None) -> str:
    """The same for all versions of a function: of these, one image is the newest."""
    return digest({"app": app, "name": name, "params": dict(params or {})})[:24]


def no_longer_wanted(images: Iterable[ImageOnDisk], now: float) -> list[str]:
    """Keys of those that nobody needs: their function has a newer version, other secrets, other volumes, or is not
    called. What runs of one keeps it."""
    return [
        image.key
        for image in images
        if not image.users and now - image.used_at > (SUPERSEDED_S if image.superseded else UNUSED_S)
    ]


def make_room(images: Iterable[ImageOnDisk], limit: int, wanted: int) -> list[str] | None:
    """Keys of those that leave for a new one of `wanted` bytes, least recently used first; None if it does not fit."""
    known = list(images)
    excess = sum(image.size for image in known) + wanted - limit
    leaving = []
    for image in sorted((image for image in known if not image.users), key=lambda image: image.used_at):
        if excess <= 0:
            break
        leaving.append(image.key)
        excess -= image.size
    return leaving if excess <= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong with the images of one key."""

    reason: str
    count: int
    until: float
    """No new one is made before that."""

    def words(self, now: float) -> str:
        """Why a container is started plainly."""
        if self.count >= MOST_FAILURES:
            return f"{self.reason} ({self.count} times; it is not tried again)"
        return f"{self.reason} (tried again in {max(0.0, self.until - now):.0f} s)"


def failed(before: Failure | None, reason: str, now: float) -> Failure:
    """One more: after a minute, then after ten it is tried again, then no more."""
    count = 1 + (before.count if before is not None else 0)
    until = float("inf") if count >= MOST_FAILURES else now + FIRST_PAUSE_S * LATER_PAUSES ** (count - 1)
    return Failure(reason=reason, count=count, until=until)
