"""Files of users in images: steps name them by their hash, and must not name those of another workspace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from squall.errors import InvalidError, NotFoundError
from squall.spec import ImageSpec, ImageStep
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.blobs import check_sha256
from squall_gateway.image_records import ImageRecords


class ImageSources:
    """Checks what images name."""

    def __init__(self, blobs: BlobPlaces, records: ImageRecords) -> None:
        self._blobs = blobs
        self._records = records

    async def check(self, *images: ImageSpec, workspace: str) -> None:
        """Raises `InvalidError` unless the workspace has all files that the images name: now, or when it asked for the
        same image before (they may lie where blobs were then)."""
        own = self._blobs.of(workspace)
        for image in images:
            named = list(files_of(image))
            had = await self._had(image, workspace) if named else frozenset()
            for file in named:
                if file.sha256 not in had:
                    await own.require(file.sha256, file.size)

    async def _had(self, image: ImageSpec, workspace: str) -> frozenset[str]:
        """Hashes that were looked at when the workspace asked for this image: those that make it this image, and what
        its stored recipe names besides."""
        had: set[str] = set()
        for known in {each.id: each for each in (image, _of_before(image))}.values():
            try:
                record = await self._records.record(known.id, workspace)
            except NotFoundError:
                continue
            had |= {file.sha256 for file in files_of(known) if file.in_id}
            if record.spec is not None and record.workspace == workspace:
                had |= {file.sha256 for file in files_of(record.spec)}
        return frozenset(had)


class File(NamedTuple):
    """An archive that a step names."""

    sha256: str
    size: int
    in_id: bool
    """An image with another one would have another id."""


def files_of(image: ImageSpec) -> Iterator[File]:
    """Raises `InvalidError` for what is no hash with a size."""
    for step in image.steps:
        for name, value in step.arguments.items():
            if isinstance(value, Mapping) and "sha256" in value:
                sha256, size = value["sha256"], value.get("bytes")
                if not isinstance(sha256, str) or type(size) is not int:
                    raise InvalidError(f"the step {step.kind} does not say where its files are")
                yield File(check_sha256(sha256), size, not name.startswith("_"))


def _of_before(image: ImageSpec) -> ImageSpec:
    """The same image, as one was known whose functions were nobody's (until 0.1.0)."""
    steps = (
        ImageStep(step.kind, {name: value for name, value in step.arguments.items() if name != "scope"})
        if step.kind == "run_function" and not step.arguments.get("secrets") and not step.arguments.get("volumes")
        else step
        for step in image.steps
    )
    return ImageSpec(image.python_version, tuple(steps))
