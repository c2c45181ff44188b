"""One pool on this node: its ready containers with their slots, the calls leased for them, the pulls that bring more.

Owns who runs next and where (least loaded container), how much is asked of the queue, and handing back what cannot run
here. Does not know how an input runs: `Conduct` does.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from squall_bus import Bus, Delivery, Puller
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage
from squall_contracts.functions import FunctionRecord
from squall_gpu_agent.containers import PooledContainer
from squall_gpu_agent.held import Held, read_request
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.leases import Leases
from squall_gpu_agent.policy.lifecycle import State
from squall_gpu_agent.policy.pulling import Demand, answerable, line_limit, prefetch_limit, shares, worth_keeping
from squall_gpu_agent.tasks import Tasks
from squall_service.clock import Clock
from squall_service.failpoints import failpoint

Conduct = Callable[[Held, "Pool"], Coroutine[Any, Any, None]]
"""Takes a held call with its container from history to ack; calls `Pool.slot_free` as soon as the code has ended."""
Poisoned = Callable[[Delivery, BadMessage], Coroutine[Any, Any, None]]

MEASURE_WEIGHT = 0.2
"""Of the newest run in the moving mean of run times: about the last ten count."""
MAX_WAIT_S = 1.0
"""How long a call may wait here for a slot that was expected within 50 ms."""
UNRECORDED_PER_SLOT = 2
UNRECORDED_MIN = 256
"""Results that may wait for the bus before no more calls are pulled; the disk or the bus is in trouble then. Enough for
one batch that is written and the next that gathers."""


class Pool:
    """One pool's part on this node."""

    def __init__(self, pool: str, function: FunctionRecord, work: PoolWork) -> None:
        self.pool = pool
        self.function = function
        self._work = work
        self.containers: dict[str, PooledContainer] = {}
        self._waiting: deque[Held] = deque()
        self._pullers: list[Puller] = []
        self._backlogs: list[int] = []
        self._answered: list[bool] = []
        self._turn = 0
        self._mean_run_s: float | None = None
        self._unrecorded = 0
        self._slots = self._busy = 0
        """Of the containers that take inputs; kept, because they are asked for at every delivery."""
        self._lined_up = 0
        """In lines inside those containers."""
        self._refreshing = False
        self.closed = False

    @property
    def waiting(self) -> int:
        """Calls leased ahead of a slot."""
        return len(self._waiting) + self._lined_up

    @property
    def running(self) -> int:
        """Inputs that occupy a slot."""
        return sum(container.running for container in self.containers.values())

    async def open(self) -> None:
        """Get ready to pull from every shard; nothing is asked for before there is a container."""
        self._pullers = await self._work.open_pullers(self.pool, self._on_delivery)
        self._backlogs = [0] * len(self._pullers)
        self._answered = [False] * len(self._pullers)

    async def close(self) -> None:
        """Ask for nothing more and give back what has not started."""
        self.closed = True
        for puller in self._pullers:
            puller.want(0)
        self._return_waiting()
        async with asyncio.TaskGroup() as group:
            for puller in self._pullers:
                group.create_task(puller.close())
        self._pullers = []

    # ------------------------------------------------------------------ containers

    def add(self, container: PooledContainer) -> None:
        """A container is ready for inputs."""
        container.idle_since = self._work.clock.now()
        self.containers[container.id] = container
        self._slots += container.slots
        container.container.when_enough(lambda: self.retire(container))
        self._dispatch()
        self.refresh(probe=True)  # it was started because something waits, on a shard that may not be known to have it

    def retire(self, container: PooledContainer) -> None:
        """It takes no more inputs; what runs in it goes on."""
        if not container.closed:
            container.close()
            self._slots -= container.slots
            self._busy -= container.running
            self._lined_up -= container.lined_up
        self.refresh()

    def forget(self, container: PooledContainer) -> None:
        """It is gone."""
        self.retire(container)
        self.containers.pop(container.id, None)

    def slot_free(self, container: PooledContainer, run_s: float | None) -> None:
        """The code of an input has ended, or never began (`run_s` None). Its recording is not waited for."""
        if not container.closed:
            if container.lined_up:
                self._lined_up -= 1
            else:
                self._busy -= 1
        container.slot_freed(self._work.clock)
        if run_s is not None:
            self._work.finished[self.pool] += 1
            mean = self._mean_run_s
            self._mean_run_s = run_s if mean is None else mean + MEASURE_WEIGHT * (run_s - mean)
        self._work.changed()
        self._dispatch()
        self.refresh()

    def lend(self, wanted: str = "") -> PooledContainer | None:
        """A slot for a web request, if one is free: of the container that is wanted, or of the least loaded one."""
        container = self.containers.get(wanted)
        if container is None or not container.free:
            container = self._least_loaded()
        if self.closed:
            return None
        if container is not None:
            self._busy += 1
            container.give()
            container.served += 1
            if container.single_use:
                self.retire(container)
            self._work.changed()
        return container

    def returned(self, container: PooledContainer) -> None:
        """A slot that was lent is free."""
        self._work.finished[self.pool] += 1
        self.slot_free(container, None)

    def wait_again(self, held: Held) -> None:
        """It was given to a container and did not begin there; its slot is free."""
        held.container = None
        if self.closed:
            held.hand_back(self._work.clock.monotonic())
            return
        self._waiting.appendleft(held)
        self._dispatch()
        self.refresh()

    # ------------------------------------------------------------------ deliveries

    def _on_delivery(self, shard: int, delivery: Delivery) -> None:
        try:
            request = read_request(delivery.data)
        except BadMessage as error:
            self._work.tasks.start(self._work.poisoned(delivery, error), "poisoned call")
            self.refresh()
            return
        if self._backlogs:
            self._backlogs[shard] = delivery.pending
            self._answered[shard] = True
        held = self._work.leases.take(request, delivery)
        failpoint("agent.delivered")
        container = None if self.closed or self._waiting else self._place()
        if container is not None:
            self._start(held, container)
        elif not self.closed and self._worth_keeping():
            self._waiting.append(held)
        else:
            self._give_back(held)
        self.refresh()

    def _worth_keeping(self) -> bool:
        limit = self._prefetch_limit()
        return worth_keeping(self._demand(limit), limit)

    def _dispatch(self) -> None:
        """Start what waits while there are free slots."""
        while self._waiting:
            container = self._place()
            if container is None:
                return
            held = self._waiting.popleft()
            if held.speaks(self._work.clock.monotonic()):
                self._start(held, container)
            else:
                self._give_back(held)

    def _start(self, held: Held, container: PooledContainer) -> None:
        if container.free:
            self._busy += 1
        else:
            self._lined_up += 1
        container.give()
        held.container = container
        if container.single_use:
            self.retire(container)
        self._unrecorded += 1
        self._work.changed()
        self._work.tasks.start(self._conduct(held), "call")

    async def _conduct(self, held: Held) -> None:
        try:
            await self._work.conduct(held, self)
        finally:
            self._unrecorded -= 1
            if held.container is not None or held.final:  # else it waits here again
                self._work.leases.drop(held)
            self.refresh()

    def _give_back(self, held: Held) -> None:
        held.hand_back(self._work.clock.monotonic())
        self._work.leases.drop(held)

    def _return_waiting(self) -> None:
        """What no container here will take, or what has waited too long for a slot: others may be free.

        A slower mean run time alone is no reason: each hand-back costs the queue a redelivery and the next agent a
        look at the history."""
        if not self._waiting:
            return
        serving = self._slots and not self.closed
        oldest = self._work.clock.monotonic() - MAX_WAIT_S if serving else float("inf")
        while self._waiting and self._waiting[0].leased_at < oldest:
            self._give_back(self._waiting.popleft())

    def _place(self) -> PooledContainer | None:
        """Where the next call goes: to a free slot, or to the end of the shortest line."""
        return self._least_loaded() or self._shortest_line()

    def _shortest_line(self) -> PooledContainer | None:
        limit = line_limit(self._mean_run_s)
        if self._lined_up >= limit * self._slots:
            return None
        open_lines = [each for each in self.containers.values() if not each.closed and each.container.lines_up]
        shortest = min(open_lines, key=lambda each: each.given, default=None)
        return shortest if shortest is not None and shortest.lined_up < limit else None

    def _least_loaded(self) -> PooledContainer | None:
        if self._busy >= self._slots:
            return None
        best, least = None, 0
        for container in self.containers.values():
            given = container.given
            if not container.closed and given < container.slots and (best is None or given < least):
                best, least = container, given
                if not given:
                    break
        return best

    # ------------------------------------------------------------------ asking for more

    def refresh(self, *, probe: bool = False) -> None:
        """Set what is asked of each shard, at the end of this turn of the loop."""
        if probe:
            self._refresh(probe=True)
        elif not self._refreshing:
            self._refreshing = True
            asyncio.get_running_loop().call_soon(self._refresh)

    def _refresh(self, *, probe: bool = False) -> None:
        self._refreshing = False
        if self.closed or not self._pullers:
            return
        demand = self._demand(self._prefetch_limit())
        self._return_waiting()
        if probe:
            self._forget_old_backlogs()
        asked = answerable([puller.outstanding for puller in self._pullers], self._backlogs)
        if not demand.worth_asking(asked) and not probe:
            return
        self._turn += 1
        wants = shares(demand.capacity, self._backlogs, turn=self._turn, probe=probe)
        for puller, want in zip(self._pullers, wants, strict=True):
            puller.want(want)

    def _forget_old_backlogs(self) -> None:
        """A shard that has not answered an open request since the last probe has nothing for us any more."""
        for shard, puller in enumerate(self._pullers):
            if puller.outstanding and not self._answered[shard]:
                self._backlogs[shard] = 0
        self._answered = [False] * len(self._pullers)

    def _demand(self, prefetch: int) -> Demand:
        slots, free = self._slots, self._slots - self._busy
        if self._unrecorded - self._busy - self._lined_up > max(UNRECORDED_MIN, UNRECORDED_PER_SLOT * slots):
            return Demand(free_slots=0, prefetch=0, waiting=self.waiting)
        return Demand(free_slots=free, prefetch=prefetch, waiting=self.waiting)

    def _prefetch_limit(self) -> int:
        if self.function.spec.single_use:
            return 0  # the container that takes the next input is not there yet
        return prefetch_limit(self._slots, self._mean_run_s, self._work.prefetch_s)

    def on_cancelled(self, call: str, index: int | None) -> None:
        """A waiting input was cancelled: its history must be read before it starts."""
        for held in self._waiting:
            if held.request.call == call and index in (None, held.request.index) and held.state is State.LEASED:
                held.cancelled = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWork:
    """What every pool on this node needs, built once in agent.py."""

    bus: Bus
    identity: Identity
    clock: Clock
    tasks: Tasks
    leases: Leases
    conduct: Conduct
    poisoned: Poisoned
    changed: Callable[[], None]
    """Called on every change of load; publishes stats."""
    prefetch_s: float
    finished: Counter[str] = field(default_factory=Counter)
    """Inputs whose code has ended here since the agent started, by pool."""

    async def open_pullers(self, pool: str, on_delivery: Callable[[int, Delivery], None]) -> list[Puller]:
        """One puller for each shard."""
        async with asyncio.TaskGroup() as group:
            opened = [
                group.create_task(self._open_puller(pool, shard, on_delivery)) for shard in range(self.identity.shards)
            ]
        return [task.result() for task in opened]

    async def _open_puller(self, pool: str, shard: int, on_delivery: Callable[[int, Delivery], None]) -> Puller:
        stream = subjects.work_stream(self.identity.region, shard)
        # The gateway made the consumer together with the pool's record; agents may not make any.
        return await self.bus.pull(stream, pool, lambda delivery: on_delivery(shard, delivery))
