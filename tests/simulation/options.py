"""What a seed means: the size of the platform, the functions, the work, and which faults happen when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from squall.spec import RetryPolicy, ScalingPolicy

FAULTS = (
    "crash",  # a service is killed and starts again
    "pause",  # a service stands still, possibly longer than its leases
    "disconnect",  # a connection breaks and comes back
    "server",  # the bus server is killed; WORK may lose or bring back something
    "slow",  # some messages take up to a second
    "lost",  # requests and replies get lost
    "clock",  # a wall clock jumps
    "containers",  # containers die, or do not start
)

LONG = 0.07
"""Share of runs in which what stands still does so past its leases; the others are healed before that."""


CROSSED = 10_000_000
"""Seeds from here on are crossed runs, see `crossed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionOptions:
    """One function."""

    name: str
    scaling: ScalingPolicy
    retry: RetryPolicy
    timeout_s: float
    queue_limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One call."""

    at: float
    kind: str
    function: str
    inputs: int
    plan: dict[str, float | int | bool]
    cancel_after_s: float | None
    ordered: bool
    chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong."""

    at: float
    kind: str
    victim: int
    for_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything that a seed decides before the run begins."""

    seed: int
    shards: int
    gateways: int
    schedulers: int
    autoscalers: int
    agents: int
    cpu: float
    max_pending: int
    boot_s: float
    """How long the machines had been up when the run began."""
    start_s: float
    """A container's start."""
    deaf: float
    prefetch_ms: float
    thorough: bool
    """With real decoding of every message and with canaries: half of the time, and few seeds go otherwise with it."""
    functions: tuple[FunctionOptions, ...]
    work: tuple[Work, ...]
    faults: tuple[Fault, ...]
    enabled: frozenset[str]
    rests: bool
    """Whether it goes on until every container is gone, not only until every call has ended."""
    faults_until_s: float = field(default=12.0)
    crossed: bool = False

    def describe(self) -> str:
        """For the report of a failure."""
        services = f"{self.gateways} gateways, {self.schedulers} schedulers, {self.autoscalers} autoscalers"
        agents = f"{self.agents} agents of {self.cpu:g} cores, {self.shards} shards"
        lines = [f"{services}, {agents}; faults: {', '.join(sorted(self.enabled))}"]
        lines += [f"  function {f.name}: {f.scaling} {f.retry} timeout {f.timeout_s:g}" for f in self.functions]
        lines += [f"  {work}" for work in self.work]
        lines += [f"  {fault}" for fault in self.faults]
        return "\n".join(lines)


def options(seed: int) -> Options:
    """Expand a seed. Each run has a few kinds of faults, not all of them: rare combinations need quiet around them."""
    if seed >= CROSSED:
        return crossed(seed)
    rng = random.Random(seed)
    enabled = frozenset(rng.sample(FAULTS, rng.choice((1, 1, 2, 2, 3))))
    functions = tuple(_function(rng, f"f{number}") for number in range(rng.choice((1, 1, 2))))
    busy = rng.uniform(1.2, 3.0)
    long = rng.random() < LONG
    until = busy + (rng.uniform(9.0, 14.0) if long else 0.0)
    work = tuple(_work(rng, functions, busy, long=long) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    gateways, schedulers, autoscalers = (1 + (rng.random() < share) for share in (0.2, 0.2, 0.2))
    agents = rng.choice((1, 1, 1, 2, 2, 3))
    return Options(
        seed=seed,
        shards=rng.choice((1, 1, 1, 1, 2)),
        gateways=gateways,
        schedulers=schedulers,
        autoscalers=autoscalers,
        agents=agents,
        cpu=rng.choice((0.25, 0.5, 1.0)),
        max_pending=rng.choice((8, 1000)),
        boot_s=rng.choice((0.0, 1000.0)),
        start_s=rng.choice((0.02, 0.2, 1.0)),
        deaf=rng.choice((0.0, 0.0, 0.5)),
        prefetch_ms=rng.choice((0.0, 50.0, 500.0)),
        thorough=rng.random() < 0.06,
        functions=functions,
        work=tuple(sorted(work, key=lambda each: each.at)),
        faults=tuple(_faults(rng, enabled, busy)),
        enabled=enabled,
        faults_until_s=until,
        rests=long or rng.random() < 0.6,
    )


def crossed(seed: int) -> Options:
    """Two executions of one input end at about the same time: the first agent stands still past its lease and goes on
    while another one runs what it had. Half of all news between agents and gateways is lost meanwhile, and who reads a
    map's results begins at the first one whenever it reads again. What this shows other seeds show once in a thousand.
    """
    rng, usual = random.Random(seed), options(seed % CROSSED)
    run_s = rng.uniform(9.0, 10.5)
    # A lease is lost 6 to 8 s after the pause began; the other one shall end up to 4 s after the first has gone on.
    pause_s = run_s + rng.uniform(3.5, 7.5)
    agents = rng.choice((2, 2, 3))
    first = usual.gateways + usual.schedulers + usual.autoscalers  # the agent that is asked first
    kind = rng.choice(("remote", "remote", "map"))
    work = Work(
        at=0.3,
        kind=kind,
        function="f0",
        inputs=6 if kind == "map" else 1,
        plan={"run_s": run_s if kind == "remote" else 0.5},
        cancel_after_s=None,
        ordered=rng.random() < 0.5,
        chunk=100,
    )
    function = FunctionOptions(
        name="f0",
        scaling=ScalingPolicy(
            max_containers=1 if kind == "map" else 3, scaledown_window_s=3.0, max_inputs=1, target_inputs=1
        ),
        retry=RetryPolicy(max_retries=0),
        timeout_s=60.0,
        queue_limit_s=3600.0,
    )
    pauses = [Fault(at=rng.uniform(1.5, 3.0), kind="pause", victim=first, for_s=pause_s)]
    breaks = [Fault(at=rng.uniform(1.0, 2.4), kind="crash", victim=0, for_s=0.2)] if kind == "map" else []
    return replace(
        usual,
        seed=seed,
        agents=agents,
        start_s=0.2,
        functions=(function,),
        work=(work,),
        faults=(Fault(at=0.5, kind="lost", victim=0, for_s=25.0), *pauses, *breaks),
        enabled=frozenset(("pause", "lost", "crash")),
        faults_until_s=26.0,
        rests=False,
        crossed=True,
    )


def _function(rng: random.Random, name: str) -> FunctionOptions:
    slots = rng.choice((1, 1, 2, 4))
    return FunctionOptions(
        name=name,
        scaling=ScalingPolicy(
            max_containers=rng.choice((1, 2, 3, 4)),
            scaledown_window_s=rng.choice((0.5, 1.0, 3.0)),
            max_inputs=slots,
            target_inputs=rng.randint(1, slots),
        ),
        retry=RetryPolicy(
            max_retries=rng.choice((0, 1, 3)),
            initial_delay_s=rng.choice((0.0, 0.3, 1.0)),
            backoff_coefficient=rng.choice((1.0, 2.0)),
            max_delay_s=4.0,
        ),
        timeout_s=rng.choice((1.5, 60.0, 60.0)),
        queue_limit_s=rng.choice((6.0, 3600.0, 3600.0, 3600.0)),
    )


def _work(rng: random.Random, functions: tuple[FunctionOptions, ...], busy: float, *, long: bool) -> Work:
    kind = rng.choice(("remote", "remote", "spawn", "map"))
    plan: dict[str, float | int | bool] = {"run_s": rng.choice((0.005, 0.05, 0.5, 1.5))}
    match rng.random():
        case x if x < 0.2:
            plan["fails"] = rng.randint(1, 3)
        case x if x < 0.3:
            plan["crashes"] = rng.randint(1, 2)
        case x if x < 0.35:
            plan.update(run_s=1.0, hangs=True)
        case x if x < 0.45:
            plan["run_s"] = 9.5 if long else 3.0  # longer than a lease
    hangs = bool(plan.get("hangs"))
    function = rng.choice(functions)
    if hangs and function.timeout_s > 10:
        plan.pop("hangs")
    if plan["run_s"] > 1.0 and kind == "map":
        plan["run_s"] = 0.3
    return Work(
        at=rng.uniform(0.2, busy * 0.8),
        kind=kind,
        function=function.name,
        inputs=rng.choice((2, 3, 6)) if kind == "map" else 1,
        plan=plan,
        cancel_after_s=rng.choice((None, None, None, None, 0.001, 0.02, 0.3, 2.0)),
        ordered=rng.random() < 0.7,
        chunk=rng.choice((1, 3, 100)),
    )


def _faults(rng: random.Random, enabled: frozenset[str], busy: float) -> list[Fault]:
    found = []
    for kind in sorted(enabled):
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            at = rng.uniform(0.4, busy)
            for_s = rng.choice((0.05, 0.5, 2.0, 3.0, 9.0, 13.0))
            detail = ""
            if kind == "server":
                for_s = rng.choice((0.1, 0.5, 2.0))
                detail = rng.choice(("", "", "tail", "acks", "everything", "stream"))
            found.append(Fault(at=at, kind=kind, victim=rng.randrange(100), for_s=for_s, detail=detail))
    return sorted(found, key=lambda fault: fault.at)
