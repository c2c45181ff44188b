"""Bodies about objects with a name: volumes, dicts, queues, secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class MakeObject:
    """POST /v1/objects/{kind}."""

    name: str = ""
    environment: str = "main"
    ephemeral: bool = False
    """Without a name: it is gone five minutes after its last renewal."""


@dataclass(frozen=True)
class RenameObject:
    """POST /v1/objects/{kind}/{name}/rename."""

    name: str
    """The new one."""
    environment: str = "main"


BLOCK_BYTES = 8 * 1024 * 1024
"""Of a file in a volume, but for the last block."""
MAX_MTIME_S = float(1 << 40)
"""Python and file systems refuse times that are very far away."""


@dataclass(frozen=True)
class VolumeFile:
    """A file of a volume."""

    path: str
    size: int
    mtime: float
    """At most `MAX_MTIME_S` before or after 1970."""
    mode: int
    blocks: tuple[str, ...]
    """sha256 of each, in order."""
    link: str = ""
    """Of a symbolic link: what it says, relative and within the volume; it has no blocks then."""


@dataclass(frozen=True)
class VolumeChange:
    """One change of a commit."""

    what: str
    """"put", "remove" or "copy"; of a mounted volume "write" (a put that replaces whatever is in its way, folders too)
    and "unlink" (a removal of one file, which may be gone already)."""
    path: str
    """What is put or removed; of a copy where it goes."""
    file: Optional[VolumeFile] = None
    """Of a put or write; its blocks were uploaded before."""
    force: bool = False
    """Of a put: replace what is there."""
    sources: tuple[str, ...] = ()
    """Of a copy."""
    recursive: bool = False


@dataclass(frozen=True)
class CommitVolume:
    """POST /v1/volumes/{object}/commits."""

    changes: tuple[VolumeChange, ...]
    expect: Optional[int] = None
    """Refuse (409) if the volume is at another version."""
    request: str = ""
    """A name of the caller's making: repeating it changes nothing."""


@dataclass(frozen=True)
class CollectBlocks:
    """POST /v1/volume-collections: blocks of the workspace's volumes that no version needs any more."""

    dry_run: bool = False


@dataclass(frozen=True)
class CollectedBlocks:
    """What was removed, or would be, and what stays."""

    dry_run: bool
    removed: int
    removed_bytes: int
    waiting: int
    """Needed by nothing, but not for long enough yet."""
    waiting_bytes: int
    needed: int
    needed_bytes: int
    is_complete: bool = True
    """False: another gateway was at it, or it took too long; the rest is left to the next time."""


@dataclass(frozen=True)
class VolumeVersion:
    """A version of a volume."""

    version: int
    files: int
    size: int
    committed_at: float


@dataclass(frozen=True)
class VolumeHead:
    """GET /v1/volumes/{object}/head."""

    version: int
    manifest: str
    """`<sha256>:<bytes>` of a blob with {"files": [VolumeFile]}; empty: there are none."""


@dataclass(frozen=True)
class VolumeEntry:
    """A file or folder of a volume."""

    path: str
    type: str
    """"file", "directory" or "symlink"."""
    mtime: float
    size: int


@dataclass(frozen=True)
class ObjectInfo:
    """A dict, a queue or a volume."""

    id: str
    kind: str
    name: str
    environment: str
    created_at: float


@dataclass(frozen=True)
class PutSecret:
    """POST /v1/secrets."""

    name: str
    values: Mapping[str, str]
    environment: str = "main"
    replace: bool = False
    """Give it these values if it is there, and no others."""


@dataclass(frozen=True)
class UpdateSecret:
    """POST /v1/secrets/{name}: these values are set, None removes one; the others stay."""

    values: Mapping[str, Optional[str]]
    environment: str = "main"


@dataclass(frozen=True)
class SecretValues:
    """POST /v1/secret-values. Equal values have one id."""

    values: Mapping[str, str]
    environment: str = "main"


@dataclass(frozen=True)
class SecretInfo:
    """What is told about a secret: never a value."""

    id: str
    name: str
    environment: str
    keys: tuple[str, ...]
    created_at: float
    updated_at: float
