"""A ready container as its pool sees it: slots, load, and what its start looked like. Owns no process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from squall_contracts.calls import SpanVector
from squall_contracts.functions import FunctionRecord
from squall_gpu_agent.backend import Container
from squall_service.clock import Clock


@dataclass(slots=True, kw_only=True, eq=False)
class PooledContainer:
    """One container that takes inputs."""

    container: Container
    pool: str
    function: FunctionRecord
    ready_ns: int
    """Wall clock at which it could take its first input."""
    start_rows: SpanVector = field(default_factory=list)
    """Trace rows of everything that led to it; they go with the first attempt that waited for it."""
    cold_call: str = ""
    gpus: tuple[str, ...] = ()
    id: str = field(init=False)
    """Container id."""
    slots: int = field(init=False)
    """Inputs that it may run at once."""
    yields: bool = field(init=False)
    """Some of its methods are generators."""
    single_use: bool = field(init=False)
    """It ends after one input."""
    given: int = 0
    """Inputs that occupy a slot, and those that wait in line for one."""
    served: int = 0
    """Inputs that were ever handed to it."""
    idle_since: float = 0.0
    """Unix seconds; meaningless while it runs something."""
    closed: bool = False
    """Takes no more inputs: draining, ending or dead."""
    taken_away: str = ""
    """Why we take it away from what still runs in it: its inputs end as infrastructure failures. Empty: we do not."""
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Closed, and nothing runs in it."""

    def __post_init__(self) -> None:
        self.id = self.container.id
        self.slots = self.function.spec.scaling.max_inputs
        self.single_use = self.function.spec.single_use
        self.yields = any(method.is_generator for method in self.function.spec.methods)

    @property
    def running(self) -> int:
        """Inputs that occupy a slot."""
        given, slots = self.given, self.slots
        return given if given < slots else slots

    @property
    def lined_up(self) -> int:
        """Inputs that were given to it ahead of a slot."""
        over = self.given - self.slots
        return over if over > 0 else 0

    @property
    def free(self) -> int:
        """Inputs that it can take now."""
        return 0 if self.closed else self.slots - self.running

    def close(self) -> None:
        """No more inputs; what waits in line comes back."""
        self.closed = True
        self.container.recall()
        if not self.given:
            self.emptied.set()

    def take_away(self, why: str = "its node took the container away") -> None:
        """What still runs in it is not to blame for how it ends."""
        self.taken_away = self.taken_away or why

    def give(self) -> None:
        """An input takes a slot, or its place in line."""
        self.given += 1

    def slot_freed(self, clock: Clock) -> None:
        """An input has ended or left the line."""
        self.given -= 1
        if not self.given:
            self.idle_since = clock.now()
            if self.closed:
                self.emptied.set()
