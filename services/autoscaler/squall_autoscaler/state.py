"""What the autoscaler decides on: a pool's situation at one moment, as frozen values. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass

from squall.spec import ScalingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a pool."""

    at: float
    inputs: int | None
    """Waiting and running inputs of the queue; None = the queue could not be asked."""
    running: int = 0
    """Inputs that containers say they run."""
    ready: int = 0
    starting: int = 0
    """Proposed or starting."""
    web: int = 0
    """Held and running web requests."""
    finished: float | None = None
    """Inputs that the pool's containers have ended so far, over all; None = nobody counts them."""
    heard: bool = True
    """Every node that has containers of the pool was heard of lately."""

    @property
    def live(self) -> int:
        """Containers that there are or will be."""
        return self.ready + self.starting


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the pool is, apart from its load."""

    policy: ScalingPolicy
    desired: int = 0
    """The stored decision."""
    stopped: bool = False
    """Its app is stopped."""
    retired: bool = False
    """A newer version is deployed; this one ends what it has."""
    failing: bool = False
    """Its containers do not start (the scheduler's verdict)."""
    no_room: bool = False
    """Nodes are full (the scheduler's verdict)."""
    woken_at: float = float("-inf")
    """When an arrival woke it; what has arrived may not be in its queue yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How many containers, and why."""

    count: int
    reason: str
    unserved: bool = False
    """Inputs wait that no container runs: look again soon."""
