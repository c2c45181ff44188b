"""The log of one build: its lines, sent in batches while the build runs."""

from __future__ import annotations

from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.logs import LogLines
from squall_service.clock import Clock

BATCH_LINES = 200
BATCH_S = 0.1
POOL = "build"
"""Stands for the pool in the subject of build logs; the image id stands for the app."""


class BuildLog:
    """Lines of one image's build."""

    def __init__(self, bus: Bus, clock: Clock, image: str, builder: str) -> None:
        self._bus = bus
        self._clock = clock
        self._image = image
        self._builder = builder
        region, shards = bus.topology.region, bus.topology.shards
        shard = subjects.shard_of_name(image, shards)
        self._subject = subjects.log(region, shard, image, POOL, "-")
        self._lines: list[list[object]] = []
        self._sent_at = 0.0

    def add(self, text: str, stream: str = "stdout") -> None:
        """One line; sent at once when the last batch is long ago, or with the next."""
        now = self._clock.now()
        self._lines.append([now, stream, f"{text}\n"])
        if len(self._lines) >= BATCH_LINES or now - self._sent_at >= BATCH_S:
            self.send()

    def send(self) -> None:
        """Hand over what is there."""
        if not self._lines:
            return
        batch = LogLines(
            app=self._image,
            pool=POOL,
            function="",
            container=self._builder,
            call="",
            index=-1,
            lines=self._lines,
        )
        self._lines, self._sent_at = [], self._clock.now()
        self._bus.publish_soon(self._subject, batch.encode())
