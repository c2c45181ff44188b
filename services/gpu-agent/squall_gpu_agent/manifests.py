"""Manifests: which one in the registry an image is, by the builder's word. The registry is not asked what is what."""

from __future__ import annotations

from squall_bus import Bus
from squall_contracts.builds import IMAGES, READY, WITHDRAWN, ImageRecord
from squall_service.clock import Clock

TRIES, PAUSE_S = 10, 0.2
"""A container is placed once its image is ready; a replica of the bucket may be a moment behind."""


class Manifests:
    """Reads of the bucket `images`."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._images = bus.kv(IMAGES)
        self._clock = clock

    async def of(self, image_id: str) -> str:
        """The digest; empty for an image that is in no registry."""
        for _ in range(TRIES):
            entry = await self._images.get(image_id)
            record = None if entry is None else ImageRecord.decode(entry.value)
            if record is not None and record.state in (READY, WITHDRAWN):  # nothing of the latter is removed yet
                return record.manifest
            await self._clock.sleep(PAUSE_S)
        return ""
