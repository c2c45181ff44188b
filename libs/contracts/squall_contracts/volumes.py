"""Volumes: which version of its files a volume has. The files' blocks and the list of them lie in the blob store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall_contracts.envelope import Message

VOLUMES = "volumes"
STORE_USER = "store-user"
"""Key of a random name: the one by which the blob store knows this bus."""
MAX_LIST_BYTES = 256 << 20
"""Of the list of a version's files: gateways and agents hold it in memory."""


@dataclass(frozen=True)
class VolumeHead(Message):
    """The present version of a volume. Bucket `volumes`, key `<workspace>.<volume>`; owner: gateway. A commit is one
    compare-and-set of it: a reader sees the version before in full, or the one after."""

    TYPE: ClassVar[str] = "volume_head"

    volume_id: str
    version: int
    manifest: str
    """`<sha256>:<bytes>` of the list of files (JSON, see `squall_gateway.volumes`)."""
    files: int
    size: int
    """Bytes of all files."""
    committed_at: float
    recent: list[list[Any]] = field(default_factory=list)
    """[request, version] of the last commits, newest first: a repeated request is not a second commit."""


@dataclass(frozen=True)
class CondemnedBlocks(Message):
    """Blocks that a collector may remove now: no version needs them, and no commit may rely on them. Bucket `volumes`,
    key `<workspace>.blocks.condemned`; owner: the gateway that collects. It expires if that one dies."""

    TYPE: ClassVar[str] = "condemned_blocks"

    blocks: list[str]
    """sha256 of each."""


def condemned_key(workspace: str) -> str:
    """Key of the blocks that are condemned."""
    return f"{workspace}.blocks.condemned"


def is_head(key: str) -> bool:
    """Whether it is the key of a volume's head."""
    return key.count(".") == 1


def volume_key(workspace: str, object_id: str) -> str:
    """Key of a volume's head."""
    return f"{workspace}.{object_id}"
