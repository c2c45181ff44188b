"""The phases of one cold start, put together from two clocks: the agent's and the runner's. Pure.

What a runner reports is clipped to the time that the agent saw pass, so phases never overlap and never lie outside of
the start, whatever the runner claims.
"""

from __future__ import annotations

from collections.abc import Sequence

from squall_gpu_agent.backend import Phase

IMAGE, PULL, SANDBOX, CONNECT = "image.ensure", "image.pull", "sandbox.create", "runner.connect"


class Timeline:
    """Appends phases from a starting point on; each begins where the one before ended, or later."""

    def __init__(self, start_ns: int) -> None:
        self._phases: list[Phase] = []
        self._end_ns = start_ns

    @property
    def phases(self) -> tuple[Phase, ...]:
        """So far."""
        return tuple(self._phases)

    def until(self, name: str, end_ns: int) -> None:
        """A phase that took from the end of the last one to `end_ns`."""
        end_ns = max(end_ns, self._end_ns)
        self._phases.append(Phase(name, self._end_ns, end_ns - self._end_ns))
        self._end_ns = end_ns

    def reported(self, booted_ns: int, phases: Sequence[Phase], end_ns: int, first: str = CONNECT) -> None:
        """What a runner said: `first` until it ran, then its own phases, all within the time until `end_ns`."""
        end_ns = max(end_ns, self._end_ns)
        self.until(first, min(booted_ns, end_ns))
        for phase in phases:
            start = min(max(phase.start_ns, self._end_ns), end_ns)
            stop = min(max(phase.start_ns + phase.duration_ns, start), end_ns)
            self._phases.append(Phase(phase.name, start, stop - start))
            self._end_ns = stop
