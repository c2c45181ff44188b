"""Images that were built: lists and recipes of them, and the names that they are published under.

Owns the names (keys `name.` of the bucket `images`); the records are the builder's.
"""

from __future__ import annotations

import re

from squall.errors import InvalidError, NotFoundError
from squall.http_api import ImageInfo
from squall.ids import check_name
from squall.spec import to_wire
from squall_bus import Bus
from squall_contracts.builds import IMAGES, ImageNameRecord, ImageRecord, image_name_key, image_names_of
from squall_service.clock import Clock

_ID = re.compile(r"im-[0-9a-f]{24}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}:[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ImageRecords:
    """Reads of the bucket; nothing is kept."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bucket = bus.kv(IMAGES)
        self._clock = clock

    async def all_of(self, workspace: str, environment: str) -> list[ImageInfo]:
        """Images that the workspace asked for or has a name for, those built last first."""
        names = await self._names(workspace, environment)
        records = [ImageRecord.decode(entry.value) for entry in await self._bucket.entries("im-")]
        own = [record for record in records if record.workspace in ("", workspace) or record.image in names]
        own.sort(key=lambda record: record.updated_at, reverse=True)
        return [_info(record, names.get(record.image, ())) for record in own]

    async def one(self, image: str, workspace: str, environment: str) -> ImageInfo:
        """An image with its recipe, for whoever knows its id. Raises `NotFoundError`."""
        entry = await self._bucket.get(check_image_id(image))
        if entry is None:
            raise NotFoundError(f"there is no image {image}", fix="`squall image list` has those that were built.")
        names = await self._names(workspace, environment)
        return _info(ImageRecord.decode(entry.value), names.get(image, ()), recipe=True)

    async def named(self, name: str, workspace: str, environment: str) -> ImageInfo:
        """The image that a name means. Raises `NotFoundError`."""
        check_name(environment, "environment")
        entry = await self._bucket.get(image_name_key(workspace, environment, _checked(name)))
        if entry is None:
            raise NotFoundError(
                f"no image is published as {name!r} in environment {environment!r}",
                fix="Publish it: `image.publish(name)`.",
            )
        return await self.one(ImageNameRecord.decode(entry.value).image, workspace, environment)

    async def publish(self, name: str, image: str, workspace: str, environment: str) -> ImageInfo:
        """From now on the name means that image, which must be ready."""
        found = await self.one(image, workspace, environment)
        if found.state != "ready":
            raise InvalidError(f"image {image} is {found.state}, not ready", fix="Build it first.")
        record = ImageNameRecord(
            name=_checked(name),
            image=image,
            workspace=workspace,
            environment=environment,
            updated_at=self._clock.now(),
        )
        await self._bucket.put(image_name_key(workspace, environment, name), record.encode())
        return await self.one(image, workspace, environment)

    async def _names(self, workspace: str, environment: str) -> dict[str, tuple[str, ...]]:
        check_name(environment, "environment")
        found: dict[str, tuple[str, ...]] = {}
        for entry in await self._bucket.entries(image_names_of(workspace, environment)):
            record = ImageNameRecord.decode(entry.value)
            found[record.image] = tuple(sorted((*found.get(record.image, ()), record.name)))
        return found


def check_image_id(image: str) -> str:
    """The id itself. Raises `InvalidError`."""
    if not _ID.fullmatch(image):
        raise InvalidError(f"{image!r} is not the id of an image", fix="`squall image list` has them.")
    return image


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidError(f"{name!r} is not a name of an image", fix='Write "name" or "name:tag".')
    return name


def _info(record: ImageRecord, names: tuple[str, ...], recipe: bool = False) -> ImageInfo:
    return ImageInfo(
        image=record.image,
        state=record.state,
        updated_at=record.updated_at,
        python=record.python,
        packages=record.lock,
        layers=record.layers,
        build_ms=record.build_ms,
        error=str(record.error.get("message", "")),
        names=names,
        spec=to_wire(record.spec) if recipe and record.spec is not None else None,
    )
