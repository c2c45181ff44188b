"""What the scheduler's decisions cost: placing one container, and a pool of them, at N nodes. No bus, one process.

    scripts/bench placement
Prints one Markdown row per figure for benchmarks/README.md.
"""

from __future__ import annotations

import datetime
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from squall.spec import CodeRef, FunctionSpec, GpuRequest, Resources
from squall_contracts.functions import FunctionRecord, PoolRecord
from squall_contracts.nodes import ClaimState, ContainerClaim, NodeFact
from squall_contracts.scaling import Desired
from squall_scheduler.facts import Facts
from squall_scheduler.open_calls import Open, OpenCalls
from squall_scheduler.policy.claims import plan
from squall_scheduler.policy.placement import NoRoom, place
from squall_scheduler.state import Cluster, Gpu, Node, NodeId, PoolId, Usage, Wanted

NOW = 1_000_000.0
ROUNDS = 200
KINDS = ("A10", "A100", "H100")


def a_cluster(number: int, *, full: bool = False) -> Cluster:
    """Nodes of 64 cores, a third of them with GPUs, filled at random, or to the last core."""
    chance = random.Random(number)
    nodes = {}
    for n in range(number):
        name = NodeId(f"node-{n:05d}")
        gpus = tuple(Gpu(uuid=f"{name}-{g}", type=KINDS[n % 9 // 3]) for g in range(8)) if n % 3 == 0 else ()
        cpu = 64_000 if full else chance.randrange(60_000)
        used = Usage(cpu_milli=cpu, memory_mib=cpu // 8, containers=cpu // 1000)
        nodes[name] = Node(id=name, cpu_milli=64_000, memory_mib=262_144, gpus=gpus, seen_at=NOW, used=used)
    return Cluster(nodes=nodes)


def wanted(**given: object) -> Wanted:
    """A container of one core."""
    want = Wanted(
        pool=PoolId("po-1"), function_id="fu-1", image="im-1", isolation="process", cpu_milli=1000, memory_mib=1024
    )
    return replace(want, **given)  # type: ignore[arg-type]


def a_pool_in(nodes: int, claims: int) -> Facts:
    """The facts of one pool that has claims on many nodes."""
    facts, pool = Facts(), PoolId("po-1")
    for n in range(nodes):
        fact = NodeFact(node=f"node-{n:05d}", region="local", at=NOW, cpu=64.0, memory_mib=262_144)
        facts.machines.node_seen(fact, NOW)
    spec = FunctionSpec(
        name="f", code=CodeRef(bundle_sha256="", module="m", qualname="f"), resources=Resources(cpu=1.0)
    )
    record = PoolRecord(pool=pool, function_id="fu-1", app_id="ap-1", workspace="main")
    function = FunctionRecord("fu-1", "ap-1", "a", "main", "main", 1, False, spec, NOW)
    facts.pool_declared(pool, record)
    facts.declared.function_declared("fu-1", function)
    for n in range(claims):
        claim = ContainerClaim(
            pool=pool,
            ordinal=n,
            container=f"co-{n}",
            node=f"node-{n % nodes:05d}",
            function_id="fu-1",
            app_id="ap-1",
            workspace="main",
            state=ClaimState.READY,
            created_at=NOW,
            updated_at=NOW,
            cpu=1.0,
            memory_mib=1024,
        )
        facts.claim_changed(claim, n + 1, NOW)
    facts.desired_changed(pool, Desired(pool=pool, count=claims + 64, reason="", decision="de-1", decided_at=NOW))
    return facts


def timed(work: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def row(name: str, work: Callable[[], object], rounds: int = ROUNDS) -> None:
    p50, p99 = timed(work, rounds)
    print(f"| {name} | {p50:.3f} | {p99:.3f} |")


def main() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{today}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| decision | p50 ms | p99 ms |\n|---|---|---|")
    for number in (10, 100, 1000):
        cluster, full = a_cluster(number), a_cluster(number, full=True)
        gpu = wanted(gpus=(GpuRequest("B200"), GpuRequest("H100", count=2)))
        row(f"place one container, {number} nodes", lambda c=cluster: place(wanted(), c, NOW))  # type: ignore[misc]
        row(f"place two H100 as second choice, {number} nodes", lambda c=cluster, g=gpu: place(g, c, NOW))  # type: ignore[misc]
        assert isinstance(place(wanted(), full, NOW), NoRoom)
        row(f"say why {number} full nodes refuse", lambda c=full: place(wanted(), c, NOW))  # type: ignore[misc]
    for nodes, claims in ((10, 100), (100, 1000)):
        facts = a_pool_in(nodes, claims)

        def look(known: Facts = facts) -> object:
            pool = known.pool(PoolId("po-1"), NOW)
            return plan(pool, known.machines.cluster(), NOW)

        row(f"plan 64 more for a pool of {claims} on {nodes} nodes", look, 20)
    calls = OpenCalls()
    for number in range(1_000_000):
        calls.add("po-1", f"fc-{number:026d}.0", Open(number, NOW + number))
    row("reconciler: what is due, of 1,000,000 open inputs", lambda: list(calls.due(NOW - 1, 256)))


if __name__ == "__main__":
    main()
