"""Images that were built: lists and recipes of them, and the names that they are published under.

Owns the names (keys `name.` of the bucket `images`); the records are the builder's.
"""

from __future__ import annotations

import re
from dataclasses import replace

from squall.errors import ConflictError, InvalidError, NotFoundError
from squall.http_api.images import ImageInfo
from squall.ids import check_name
from squall.spec import ImageSpec, identity, to_wire
from squall_bus import Bus
from squall_contracts.builds import (
    GONE,
    IMAGE_IDS,
    IMAGES,
    ImageNameRecord,
    ImageRecord,
    image_name_key,
    image_names_of,
    image_user_key,
)
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
        own = [record for record in await self.of_workspace(workspace) if record.state not in GONE]
        own.sort(key=lambda record: record.updated_at, reverse=True)
        return [_info(record, names.get(record.image, ())) for record in own]

    async def of_workspace(self, workspace: str) -> list[ImageRecord]:
        """Of images that the workspace asked for, also of those that are being removed."""
        records = [ImageRecord.decode(entry.value) for entry in await self._bucket.entries(IMAGE_IDS)]
        prefix = image_user_key(workspace, "")
        asked = {entry.key.removeprefix(prefix) for entry in await self._bucket.entries(prefix)}
        return [each for each in records if each.workspace in ("", workspace) or each.image in asked]

    async def is_gone(self, image: str) -> bool:
        """Whether it was pruned, and is not built again."""
        entry = await self._bucket.get(image, from_leader=True)
        return entry is not None and ImageRecord.decode(entry.value).state in GONE

    async def is_there(self, image: str) -> bool:
        """Whether it was built, or is being built, and was not pruned."""
        entry = await self._bucket.get(image, from_leader=True)
        return entry is not None and ImageRecord.decode(entry.value).state not in GONE

    async def one(self, image: str, workspace: str, environment: str) -> ImageInfo:
        """An image with its recipe. Raises `NotFoundError`, also for one that the workspace never asked for."""
        record = await self.record(image, workspace)
        names = await self._names(workspace, environment)
        return _info(record, names.get(image, ()), _shown(record, workspace))

    async def record(self, image: str, workspace: str) -> ImageRecord:
        """What is known of an image that the workspace asked for. Raises `NotFoundError`."""
        entry = await self._bucket.get(check_image_id(image))
        record = None if entry is None else ImageRecord.decode(entry.value)
        if record is not None and record.workspace not in ("", workspace):
            # It may be the second one that did: equal images are built once.
            asked = await self._bucket.get(image_user_key(workspace, image), from_leader=True)
            record = None if asked is None else record
        if record is None or record.state in GONE:
            raise NotFoundError(f"there is no image {image}", fix="`squall image list` has those that were built.")
        return record

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
        key = image_name_key(workspace, environment, name)
        await self._bucket.put(key, record.encode())
        if await self.is_gone(image):  # pruning may not have seen that it has a name now
            await self._bucket.delete(key)
            raise ConflictError(f"image {image} was pruned just now", fix="Publish it again: it is built again.")
        return await self.one(image, workspace, environment)

    async def names_of(self, environment: str, workspace: str) -> list[str]:
        """Names that images have in an environment."""
        return sorted(name for names in (await self._names(workspace, environment)).values() for name in names)

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


def _shown(record: ImageRecord, workspace: str) -> ImageSpec | None:
    """Its recipe. Where files of steps are is told to nobody else: a workspace that asks for an equal image second has
    files of its own."""
    if record.spec is None or record.workspace in ("", workspace):
        return record.spec
    return replace(record.spec, steps=tuple(map(identity, record.spec.steps)))


def _info(record: ImageRecord, names: tuple[str, ...], recipe: ImageSpec | None = None) -> ImageInfo:
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
        spec=to_wire(recipe) if recipe is not None else None,
    )
