"""Whether new inputs can be taken at all: the bus is there, and no storage is nearly full. Looks, never repairs.

A server whose disk is full answers a publish with nothing, also that of a result of what was accepted before. So new
inputs are refused while there is still room for those, and taken again as soon as there is more.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from squall_bus import Bus
from squall_gateway.blobs import RESERVE_BYTES, Blobs
from squall_gateway.policy.admission import BUS_GRACE_S, bus_is_down
from squall_service.clock import Clock
from squall_service.telemetry import log

FULL_AT = 0.8
"""Share of a limit (of a stream, or of the account on the bus) at which calls are refused: what is accepted must still
find room for its result."""
CHECK_EVERY_S = 1.0
"""3,000 calls/s of 64 KiB fill 200 MB in that time: less than the default reserve."""


class Condition:
    """What admission asks about the platform."""

    def __init__(
        self, bus: Bus, blobs: Blobs, clock: Clock, *, bus_store: str = "", reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self._bus_store = Path(bus_store) if bus_store else None
        self._reserve_bytes = reserve_bytes
        self._bus = bus
        self._blobs = blobs
        self._clock = clock
        self._limited = [spec for spec in bus.topology.streams if spec.max_bytes > 0 and spec.discard == "new"]
        self._down_since: float | None = None
        self.storage_full = ""
        """Which storage has no room left, in words; empty when all have."""
        self._stop_listening = [bus.on_disconnect(self._on_disconnect), bus.on_reconnect(self._on_reconnect)]

    def close(self) -> None:
        """Listen no more."""
        for stop in self._stop_listening:
            stop()

    @property
    def bus_down_s(self) -> float:
        """For how long the bus has been away; 0 while it is there."""
        if self._bus.connected:
            return 0.0
        if self._down_since is None:
            self._on_disconnect()
        return max(0.0, self._clock.now() - (self._down_since or 0.0))

    def require_bus(self) -> None:
        """Raises `ServiceError` at once when whatever was asked would only wait for the bus."""
        if (down_s := self.bus_down_s) > BUS_GRACE_S:
            raise bus_is_down(down_s)

    def _on_disconnect(self) -> None:
        self._down_since = self._clock.now()

    def _on_reconnect(self) -> None:
        self._down_since = None

    async def tick(self) -> None:
        """Look at every storage once."""
        if not self._bus.connected:
            return
        before, self.storage_full = self.storage_full, await self._look()
        if self.storage_full and not before:
            log.error("calls_refused", reason=self.storage_full, status=507)
        elif before and not self.storage_full:
            log.warning("calls_taken_again", was=before)

    async def _look(self) -> str:
        return (
            await self._full_account()
            or await self._full_stream()
            or await self._full_disk()
            or await self._blobs.nearly_full()
        )

    async def _full_account(self) -> str:
        store = await self._bus.store_info()
        if store.limit_bytes is None or store.used_bytes < FULL_AT * store.limit_bytes:
            return ""
        return f"the bus's store is {100 * store.used_bytes // store.limit_bytes} % full"

    async def _full_disk(self) -> str:
        """Only where the server's folder is on this machine."""
        if self._bus_store is None:
            return ""
        free = (await asyncio.to_thread(shutil.disk_usage, self._bus_store)).free
        if free >= self._reserve_bytes:
            return ""
        return f"the disk of the bus ({self._bus_store}) has {free >> 20} MiB left"

    async def _full_stream(self) -> str:
        for spec in self._limited:
            info = await self._bus.stream_info(spec.name)
            if info.bytes >= FULL_AT * spec.max_bytes:
                return f"stream {spec.name} is {100 * info.bytes // spec.max_bytes} % full"
        return ""
