"""One run: a platform in virtual time, its callers, the faults of its seed, and what is checked about it."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import actors
from tests.simulation.actors import AgentHandle, GatewayHandle, SimClock
from tests.simulation.bus import Network, SimBus
from tests.simulation.checks import Checks
from tests.simulation.clients import Asked, Caller
from tests.simulation.containers import Effects, SimBackend
from tests.simulation.determinism import deterministic
from tests.simulation.loop import Process, SimLoop
from tests.simulation.options import Fault, Options, Work, options
from tests.simulation.server import Server

from squall.spec import CodeRef, FunctionSpec, ImageSpec, Resources
from squall_autoscaler.settings import AutoscalerSettings
from squall_bus.records import Record
from squall_contracts import topology
from squall_contracts.functions import AppRecord, FunctionRecord
from squall_gateway.settings import GatewaySettings
from squall_gpu_agent.settings import AgentSettings
from squall_scheduler.settings import SchedulerSettings

WALL = 1_700_000_000.0
BEGIN_S = 5.0
HEALED_S = 150.0
"""How long after the last fault everything must have come to its end: leases, patience, back-off, reconnects."""
APP = "ap-simulated"
GATEWAY, SCHEDULER, AUTOSCALER = GatewaySettings(), SchedulerSettings(), AutoscalerSettings(hot_tick_s=0.4)
AGENT = AgentSettings(gpus="none", memory_mib=4096, drain_s=2.0, blob_dir="/nowhere")


@dataclass(slots=True, eq=False)
class Slot:
    """One service: the process that runs now, or the place where the next one will."""

    kind: str
    name: str
    process: Process
    bus: SimBus
    clock: SimClock
    handle: Any = None
    backend: SimBackend | None = None
    requests: dict[object, Callable[[], None]] = field(default_factory=dict)
    """Open requests of callers, and how they hear that the connection broke."""
    unwell_until: float = 0.0
    """Until then it may have lost its leases: paused, cut off, or just started."""
    alive: bool = True


class World:
    """Built from a seed; `run` plays it."""

    def __init__(self, seed: int) -> None:
        self.options: Options = options(seed)
        self.seed = seed
        self.rng = random.Random(f"{seed}-world")
        self.loop = SimLoop(BEGIN_S)
        self.topology = topology.build("local", self.options.shards)
        self.network = Network(random.Random(f"{seed}-network"))
        self.server = Server(self.loop, self.topology, random.Random(f"{seed}-server"), WALL)
        self.effects = Effects(self.loop)
        self.app = APP
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.events: deque[tuple[float, str, tuple[object, ...]]] = deque(maxlen=400)
        self.asked: list[Asked] = []
        self.slots: list[Slot] = []
        self.healed = False
        self.checks = Checks(self)

    # ------------------------------------------------------------------ what others tell

    def note(self, what: str, *about: object) -> None:
        """A line of the trace."""
        self.events.append((self.loop.time(), what, about))

    def violation(self, what: str) -> None:
        """Something that must never happen."""
        self.note("VIOLATION", what)
        self.violations.append(f"at {self.loop.time():.3f}: {what}")

    def some_gateway(self, rng: random.Random) -> Slot | None:
        """One that accepts connections."""
        ready = [s for s in self.slots if s.kind == "gateway" and s.alive and s.handle.gateway is not None]
        return rng.choice(ready) if ready else None

    # ------------------------------------------------------------------ life of services

    def _boot(self, kind: str, name: str, slot: Slot | None = None) -> Slot:
        process = Process(self.loop, name)
        clock = SimClock(self.loop, WALL, BEGIN_S - self.options.boot_s)
        bus = SimBus(self.server, process, self.network, self.topology)
        if slot is None:
            slot = Slot(kind, name, process, bus, clock)
            self.slots.append(slot)
        else:
            slot.process, slot.bus, slot.clock, slot.alive = process, bus, clock, True
            slot.requests = {}
        if not self.server.up:
            bus.connected = False
        slot.unwell_until = self.loop.time() + 1.0
        work = self._work_of(slot)
        process.start(self._guarded(slot, process, work))
        self.note("started", name)
        return slot

    def _work_of(self, slot: Slot) -> Coroutine[Any, Any, None]:
        match slot.kind:
            case "gateway":
                slot.handle = GatewayHandle()
                most = self.options.max_pending
                settings = GATEWAY.model_copy(update={"max_pending": most, "max_pending_sync": most})
                return actors.run_gateway(slot.bus, slot.clock, settings, slot.handle)
            case "scheduler":
                return actors.run_scheduler(slot.bus, slot.clock, SCHEDULER)
            case "autoscaler":
                return actors.run_autoscaler(slot.bus, slot.clock, AUTOSCALER)
            case _:
                slot.handle = AgentHandle()
                slot.backend = SimBackend(
                    slot.name, self.effects, self.rng, start_s=self.options.start_s, broken=self._broken()
                )
                slot.backend.deaf = self.options.deaf
                given = {"node": slot.name, "cpu": self.options.cpu, "prefetch_ms": self.options.prefetch_ms}
                agent = AGENT.model_copy(update=given)
                return actors.run_agent(slot.bus, slot.clock, agent, slot.backend, slot.handle)

    def _broken(self) -> float:
        return 0.2 if "containers" in self.options.enabled and not self.healed else 0.0

    async def _guarded(self, slot: Slot, process: Process, work: Coroutine[Any, Any, None]) -> None:
        """A service that ends by an error starts again, as a supervisor would do."""
        try:
            await work
        except Exception as error:  # noqa: BLE001  # the process ends, and its supervisor starts it again
            self.counts["service_failed"] += 1
            self.note("failed", slot.name, repr(error))
            cause: BaseException = error
            while isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            if not getattr(cause, "retryable", False) and not isinstance(cause, TimeoutError):
                self.violation(f"{slot.name} failed: {cause!r}")
        if slot.process is process:
            self.loop.call_soon(self._crash, slot, 0.5)

    def _crash(self, slot: Slot, for_s: float) -> None:
        if not slot.alive:
            return
        slot.alive = False
        slot.process.kill()
        slot.bus.disconnect()
        self.note("killed", slot.name)
        if slot.backend is not None:
            slot.backend.end_all("its agent was killed")
        for broken in list(slot.requests.values()):
            broken()
        self.loop.call_later(for_s, self._start_again, slot)

    def _start_again(self, slot: Slot) -> None:
        if not slot.alive:
            self._boot(slot.kind, slot.name, slot)

    # ------------------------------------------------------------------ faults

    def _fault(self, fault: Fault) -> None:
        self.counts[f"fault_{fault.kind}"] += 1
        slot = self.slots[fault.victim % len(self.slots)]
        now = self.loop.time()
        self.note("fault", fault.kind, slot.name, fault.for_s, fault.detail)
        match fault.kind:
            case "crash":
                self._crash(slot, min(fault.for_s, 3.0))
            case "pause":
                self._pause(slot, fault.for_s)
            case "disconnect":
                slot.bus.disconnect()
                slot.unwell_until = max(slot.unwell_until, now + fault.for_s + 10.0)
                self.loop.call_later(fault.for_s, slot.bus.reconnect)
            case "server":
                self._server_down(fault)
            case "slow":
                self.network.slow = 0.05
                self.loop.call_later(fault.for_s, self._network_well)
            case "lost":
                self.network.lost, self.network.lost_sends = (0.0, 0.5) if self.options.crossed else (0.05, 0.0)
                self.loop.call_later(fault.for_s, self._network_well)
            case "clock":
                slot.clock.skew_s += self.rng.choice((-12.0, -3.0, 3.0, 12.0))
                slot.bus.clock_skew_s = slot.clock.skew_s
            case "containers":
                live = sorted(self.effects.live)
                if live:
                    victim = self.effects.live[live[fault.victim % len(live)]]
                    victim._exit("killed by SIGSEGV")

    def _network_well(self) -> None:
        self.network.slow = self.network.lost = self.network.lost_sends = 0.0

    def _pause(self, slot: Slot, for_s: float) -> None:
        process = slot.process
        process.pause()
        slot.unwell_until = max(slot.unwell_until, self.loop.time() + for_s + 10.0)
        self.loop.call_later(for_s, process.resume)

    def _server_down(self, fault: Fault) -> None:
        if not self.server.up:
            return
        self.server.crash()
        self.checks.server_crashed_at = self.loop.time()
        for slot in self.slots:
            slot.bus.disconnect()
            slot.unwell_until = max(slot.unwell_until, self.loop.time() + fault.for_s + 10.0)
        self.loop.call_later(fault.for_s, self._server_back, fault.detail)

    def _server_back(self, loses: str) -> None:
        if self.server.up:
            return
        self.server.restart(loses=loses, lost_s=1.0)
        self.note("server is back", loses)
        for slot in self.slots:
            self.loop.call_later(self.rng.uniform(0.01, 0.3), slot.bus.reconnect)

    def _heal(self) -> None:
        """Everything runs, everything is connected, nothing more goes wrong."""
        self.healed = True
        self.note("healed")
        self._network_well()
        if not self.server.up:
            self._server_back("")
        for slot in self.slots:
            if slot.process.paused:
                slot.process.resume()
            if not slot.alive:
                self._start_again(slot)
            slot.bus.reconnect()
            if slot.backend is not None:
                slot.backend.broken = 0.0

    # ------------------------------------------------------------------ work

    def _declare(self) -> None:
        functions = {}
        for each in self.options.functions:
            spec = FunctionSpec(
                name=each.name,
                code=CodeRef(module="app", bundle_sha256="0" * 64, bundle_bytes=1, qualname=each.name),
                image=ImageSpec(),
                resources=Resources(cpu=0.125, memory_mib=128),
                scaling=each.scaling,
                retry=each.retry,
                timeout_s=each.timeout_s,
                queue_limit_s=each.queue_limit_s,
            )
            record = FunctionRecord(
                function_id=f"fu-{each.name}",
                app_id=APP,
                app_name="simulated",
                workspace=actors.WORKSPACE,
                environment="main",
                version=1,
                ephemeral=False,
                spec=spec,
                created_at=WALL,
            )
            functions[each.name] = record.function_id
            self.server.publish(Record(f"$KV.specs.{record.function_id}", record.encode()), again=False)
        app = AppRecord(
            app_id=APP,
            name="simulated",
            workspace=actors.WORKSPACE,
            environment="main",
            state="deployed",
            version=1,
            functions=functions,
            created_at=WALL,
            updated_at=WALL,
        )
        self.server.publish(Record(f"$KV.apps.{APP}", app.encode()), again=False)

    def _ask(self, caller: Caller, work: Work) -> None:
        asked = Asked(caller.new_call(), work.kind, work.function, work.inputs, work.ordered)
        asked.plan, asked.sent_at = dict(work.plan), self.loop.time()
        self.asked.append(asked)
        self.note("asks", asked.call, work.kind, work.inputs, work.plan)
        if work.kind == "map":
            caller.process.start(caller.map(asked, work.ordered, work.chunk))
        else:
            caller.process.start(caller.call(asked))
        if work.cancel_after_s is not None:
            caller.process.call_at(
                self.loop.time() + work.cancel_after_s, lambda: caller.process.start(caller.cancel(asked))
            )

    # ------------------------------------------------------------------ the run

    def run(self) -> World:
        """From the first start to the verdict."""
        ids = random.Random(f"{self.seed}-ids")
        with deterministic(ids, lambda: int((WALL + self.loop.time()) * 1e9), thorough=self.options.thorough):
            self._declare()
            given = self.options
            numbers = {"gateway": given.gateways, "scheduler": given.schedulers, "autoscaler": given.autoscalers}
            for kind, number in {**numbers, "agent": given.agents}.items():
                for place in range(number):
                    self._boot(kind, f"{kind}-{place}")
            caller = Caller(self, "caller", random.Random(f"{self.seed}-caller"))
            for work in given.work:
                self.loop.call_at(BEGIN_S + work.at, self._ask, caller, work)
            for fault in given.faults:
                self.loop.call_at(BEGIN_S + fault.at, self._fault, fault)
            end = BEGIN_S + given.faults_until_s
            self.loop.run_until(end)
            self._heal()
            self._until_quiet(end + HEALED_S)
            self.checks.at_the_end()
            for slot in self.slots:
                slot.process.kill()
        return self

    def _until_quiet(self, end: float) -> None:
        while self.loop.time() < end and not self.violations:
            self.loop.run_until(self.loop.time() + 0.25)
            if self.checks.unfinished() == "":
                return
        if not self.violations:
            self.violation(f"not at rest {HEALED_S:.0f} s after the last fault: {self.checks.unfinished()}")

    def trace(self, last: int) -> str:
        """The last events, one a line."""
        return "\n".join(
            f"{at:9.3f} {what:<22} {' '.join(map(str, about))}" for at, what, about in list(self.events)[-last:]
        )
