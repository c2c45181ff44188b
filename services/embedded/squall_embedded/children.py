"""Child processes: watched and stopped here. Knows nothing about what they do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Child:
    """One running (or ended) child."""

    name: str
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    async def ended(self) -> int:
        """Waits for its end; its exit status."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or it is gone already
            while self.alive:  # noqa: ASYNC110 - nothing would set an event
                await asyncio.sleep(_POLL_S)
            return self.process.wait()
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self.process.wait()

    async def stop(self, grace_s: float, first: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end, and kills it when it does not within the grace period."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(first)
        try:
            async with asyncio.timeout(grace_s):
                return await self.ended()
        except TimeoutError:
            self.process.kill()
            return self.process.wait()
