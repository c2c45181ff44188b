"""Lists of a volume's files: which blocks they name. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from squall.http_api.storage import BLOCK_BYTES, VolumeFile
from squall.spec import from_wire


def files_in(body: bytes) -> list[VolumeFile]:
    """What a list says."""
    return [from_wire(VolumeFile, each) for each in json.loads(body)["files"]]


def blocks_of(file: VolumeFile) -> Iterator[tuple[str, int]]:
    """The blocks of a file, and their sizes."""
    for number, sha256 in enumerate(file.blocks):
        yield sha256, min(BLOCK_BYTES, file.size - number * BLOCK_BYTES)


def sizes_of(files: Iterable[VolumeFile]) -> dict[str, int]:
    """All their blocks."""
    return dict(block for file in files for block in blocks_of(file))


def named_in(body: bytes) -> set[str]:
    """The blocks that a list names. Cheaper than all that it says: collectors read every list."""
    return {sha256 for file in json.loads(body)["files"] for sha256 in file["blocks"]}
