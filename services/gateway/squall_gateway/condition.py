"""Whether new inputs can be taken at all: the bus is there, and no storage is nearly full. Looks, never repairs."""

from __future__ import annotations

from squall_bus import Bus
from squall_gateway.blobs import Blobs
from squall_gateway.policy.admission import BUS_GRACE_S, bus_is_down
from squall_service.clock import Clock

FULL_AT = 0.8
"""Share of a stream's max_bytes at which calls are refused: what is accepted must still find room for its result."""
CHECK_EVERY_S = 5.0


class Condition:
    """What admission asks about the platform."""

    def __init__(self, bus: Bus, blobs: Blobs, clock: Clock) -> None:
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
        self.storage_full = await self._full_stream() or await self._blobs.nearly_full()

    async def _full_stream(self) -> str:
        for spec in self._limited:
            info = await self._bus.stream_info(spec.name)
            if info.bytes >= FULL_AT * spec.max_bytes:
                return f"stream {spec.name} is {100 * info.bytes // spec.max_bytes} % full"
        return ""
