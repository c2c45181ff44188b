"""Copies of templates that were restored before anybody asked for them.

To restore takes runsc 0.3 s and more, to tell what waits who it is a few milliseconds. Until SETUP it belongs to
nobody: of users' code nothing has run in it but what the template had run.
"""

from __future__ import annotations

from dataclasses import dataclass

from squall_gpu_agent.backends.gvisor.restoring import Restoring
from squall_gpu_agent.backends.sandbox.slots import Slot

MOST = 4
"""Of all functions. Each takes 70 MiB and more, which placement does not count."""
MOST_BYTES = 128 << 20
"""Of a template's memory on the disk: copies of larger ones do not wait in memory."""


@dataclass(eq=False)
class Restored:
    """A copy of a template's memory in a slot, waiting to be told who it is. Whoever has it takes it or drops it."""

    slot: Slot
    restoring: Restoring
    pid: int
    """On the host."""

    @property
    def usable(self) -> bool:
        """Whether it still waits, as far as is known."""
        return not self.slot.ended.done()

    def drop(self) -> None:
        """Nobody will take it."""
        self.restoring.close()
        self.slot.launcher.kill(self.slot)
        self.slot.launcher.release(self.slot)
