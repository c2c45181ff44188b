"""Files of users in images: steps name them by their hash, and must not name those of another workspace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from squall.errors import InvalidError, NotFoundError
from squall.spec import ImageSpec
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.image_records import ImageRecords


class ImageSources:
    """Checks what images name."""

    def __init__(self, blobs: BlobPlaces, records: ImageRecords) -> None:
        self._blobs = blobs
        self._records = records

    async def check(self, image: ImageSpec, workspace: str) -> None:
        """Raises `InvalidError` unless the workspace has all files of the image, or has asked for it before."""
        named = list(files_of(image))
        if not named or await self._was_asked_for(image.id, workspace):
            return
        own = self._blobs.of(workspace)
        for sha256, size in named:
            await own.require(sha256, size)

    async def _was_asked_for(self, image: str, workspace: str) -> bool:
        """Then it had the files: this is looked at each time. They may lie where blobs were before."""
        try:
            await self._records.record(image, workspace)
        except NotFoundError:
            return False
        return True


def files_of(image: ImageSpec) -> Iterator[tuple[str, int]]:
    """Hash and size of the archives that steps name. Raises `InvalidError`."""
    for step in image.steps:
        for value in step.arguments.values():
            if isinstance(value, Mapping) and "sha256" in value:
                sha256, size = value["sha256"], value.get("bytes")
                if not isinstance(sha256, str) or type(size) is not int:
                    raise InvalidError(f"the step {step.kind} does not say where its files are")
                yield sha256, size
