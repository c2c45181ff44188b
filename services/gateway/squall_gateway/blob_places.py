"""Whose blobs are where: each workspace has a place of its own in the store, and its tokens reach no other.

Whatever a request names is looked for in its workspace's place alone. What stored records name was looked for there
when they were written, or lies where blobs of all workspaces were once; then the workspace gets it when the record is
read. See docs/decisions/0056.
"""

from __future__ import annotations

from collections.abc import Iterable

from squall.errors import NotFoundError, SquallError
from squall.http_api.protocol import parse_blob_ref
from squall_contracts.blobs import WORKSPACES, workspace_place
from squall_gateway.blobs import Blobs, check_sha256
from squall_service.telemetry import log


class BlobPlaces:
    """Those of all workspaces."""

    def __init__(self, older: Blobs) -> None:
        self.older = older
        """Where blobs were before each workspace had a place of its own, and where agents of that release put them."""

    def of(self, workspace: str) -> Blobs:
        """A workspace's."""
        return self.older.below(workspace_place(workspace))

    async def recorded(self, workspace: str, refs: Iterable[str | None]) -> None:
        """Let the workspace have what its stored records name, of before too: whoever is told these references can
        fetch the blobs. Not for what a request names."""
        for ref in refs:
            if ref is not None:
                await self._recorded(self.of(workspace), parse_blob_ref(ref)[0])

    async def told(self, workspace: str, refs: Iterable[str | None]) -> None:
        """The same for who must be told of a record, also while the store is away: whoever fetches the blob then is
        told about that, and tries again."""
        try:
            await self.recorded(workspace, refs)
        except (SquallError, OSError) as error:
            log.warning("blobs_of_records_not_looked_for", workspace=workspace, reason=str(error))

    async def _recorded(self, own: Blobs, sha256: str) -> None:
        if await own.size(sha256) is None and await self.older.size(sha256) is not None:
            await own.put_again(sha256, self.older)

    async def read(self, workspace: str, sha256: str) -> bytes:
        """All of a blob that a stored record names, and that is small enough. Raises `NotFoundError`."""
        own = self.of(workspace)
        try:
            return await own.read(sha256)
        except NotFoundError:
            await self._recorded(own, check_sha256(sha256))
            return await own.read(sha256)

    async def anywhere(self, sha256: str) -> Blobs:
        """A place that has it, for services that do not say whose records they read: they are of the release before.
        Raises `NotFoundError`."""
        for place in (self.older, *map(self.older.below, await self._places())):
            if await place.size(sha256) is not None:
                return place
        raise NotFoundError(f"there is no blob {sha256}")

    async def _places(self) -> list[str]:
        return [f"{WORKSPACES}/{name}" for name in await self.older.folders(WORKSPACES)]
