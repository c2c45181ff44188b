"""How long it takes until squall works again after a SIGKILL: each part in turn, N times, median and longest.

    scripts/bench recovery                            20 times each, about 20 minutes
    scripts/bench recovery --times 3 --only runner    some

On a temporary platform of processes with two agents and two gateways. Measured is, from the SIGKILL on:

- gateway, bus: until a warm call returns that its caller began right after the kill, at the gateway that was killed
  (the client repeats by itself);
- scheduler, autoscaler: the same for the first call of a pool that has no container, since warm calls need neither;
- agent, runner: until the second attempt of the call that was running there starts, in user code. That is later than
  its return to the queue. Two containers are kept warm, on whichever agents the scheduler chose;
- leader: on a platform of its own with three nats-servers that replicate, where the one that leads the most journals is
  killed; until all of 16 warm calls have returned that began right after the kill, so that shards with and
  without a leader are among them.

A part that ends again soon after its start is started again later and later (squall_embedded/restarts.py). That is not
what is measured: the parts are killed in turns, and none before it has run for STABLE_S.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import squall

if squall.is_local():  # a container has this file alone
    from benchmarks.calls import commit, machine
    from tests.support.platform import Part, Platform, eventually, process

    from squall_bus import connect
    from squall_contracts import subjects, topology
    from squall_embedded.restarts import STABLE_S
    from squall_embedded.settings import REGION, SHARDS

app = squall.App("bench-recovery")

LIMIT_S = 60.0
SETTLE_S = 3.0
HOLD_S = 120
AT_ONCE = 16
LEADER = "leader"


@app.function(min_containers=1)
def noop(value: int) -> int:
    return value


@app.function(min_containers=2, max_containers=2, timeout=HOLD_S)
def interrupted(starts: str) -> int:
    """Tells when and where each attempt starts. Only the first one stays."""
    with open(starts, "a") as file:
        file.write(f"{time.time()} {os.getpid()}\n")
    with open(starts) as file:
        attempts = len(file.readlines())
    if attempts == 1:
        time.sleep(HOLD_S)
    return attempts


@app.cls(scaledown_window=2)
class Fresh:
    """Each `pool` is a pool of its own: its first call needs the autoscaler and the scheduler."""

    pool: int = squall.parameter(default=0)

    @squall.method()
    def noop(self) -> int:
        return self.pool


class Recovery:
    """Kills and measures, on one running platform."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self._platform, self._folder = platform, folder
        self._number = 0

    def service(self, name: str) -> float:
        """A gateway or the bus: seconds until a warm call returns."""
        part = self._platform.front if name == "gateway" else self._platform.part("bus")
        return self._killed(part, lambda: noop.remote(1))

    def control(self, name: str) -> float:
        """Scheduler or autoscaler: seconds until the first call of a new pool returns."""
        self._number += 1
        fresh = Fresh(pool=self._number)  # type: ignore[call-arg]
        return self._killed(self._platform.part(name), fresh.noop.remote)

    def leader(self, _: str) -> float:
        """The bus server that leads the most journals: seconds until calls in all shards have returned."""

        def calls() -> None:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(noop.remote, range(AT_ONCE)))

        return self._killed(self._platform.part(asyncio.run(self._leads_most())), calls)

    async def _leads_most(self) -> str:
        leads: Counter[str] = Counter()
        async with connect(self._platform.bus_settings(), topology.build(REGION, SHARDS, 3)) as bus:
            for shard in range(SHARDS):
                stream = subjects.journal_stream(REGION, shard)
                answer = await bus.request(f"$JS.API.STREAM.INFO.{stream}", b"")
                leads[json.loads(answer.data)["cluster"]["leader"].removeprefix("squall-")] += 1
        return leads.most_common(1)[0][0]

    def _killed(self, part: Part, call: Callable[[], object]) -> float:
        await_age(part.pid, STABLE_S)
        os.kill(part.pid, signal.SIGKILL)
        began = time.time()
        call()
        took = time.time() - began
        self._platform.restarted(part, within_s=LIMIT_S)
        return took

    def interrupted(self, name: str) -> float:
        """The runner of a call, or its agent: seconds until the second attempt starts."""
        self._number += 1
        starts = self._folder / f"starts-{self._number}"
        call = interrupted.spawn(str(starts))
        pid = int(eventually(lambda: lines(starts), within_s=LIMIT_S, what="first attempt")[0].split()[1])
        agent = self._agent_of(pid)
        await_age(agent.pid, STABLE_S)
        began = time.time()
        os.kill(pid if name == "runner" else agent.pid, signal.SIGKILL)
        second = eventually(lambda: lines(starts)[1:], within_s=LIMIT_S, what="second attempt")[0]
        call.get(timeout=LIMIT_S)
        if name == "agent":
            self._platform.restarted(agent, within_s=LIMIT_S)
        return float(second.split()[0]) - began

    def _agent_of(self, pid: int) -> Part:
        agents = {part.pid: part for part in self._platform.parts_named("gpu-agent")}
        while pid not in agents:
            found = process(pid)
            if found is None or found.parent <= 1:
                raise LookupError("the runner has no agent above it")
            pid = found.parent
        return agents[pid]

    def settle(self) -> None:
        """Everything is there again, before the next kill."""
        time.sleep(SETTLE_S)
        for number in range(5):
            noop.remote(number)


def await_age(pid: int, seconds: float) -> None:
    """Returns once that process has run for so long."""
    started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    time.sleep(max(0.0, started + seconds - time.clock_gettime(time.CLOCK_BOOTTIME)))


def lines(file: Path) -> list[str]:
    """The complete ones, none before the file is there."""
    return file.read_text().split("\n")[:-1] if file.exists() else []


CASES: dict[str, tuple[str, Callable[[Recovery, str], float]]] = {
    "gateway": ("a warm call through it returns", Recovery.service),
    "scheduler": ("the first call of a new pool returns", Recovery.control),
    "autoscaler": ("the first call of a new pool returns", Recovery.control),
    "bus": ("a warm call returns", Recovery.service),
    "runner": ("its call's second attempt starts", Recovery.interrupted),
    "agent": ("its call's second attempt starts", Recovery.interrupted),
    LEADER: ("calls in all shards return", Recovery.leader),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="kills of each part (default: %(default)s)")
    parser.add_argument("--only", default=",".join(CASES), help="parts, separated by commas")
    given = parser.parse_args()
    chosen = given.only.split(",")
    if given.times < 1 or not set(chosen) <= set(CASES):
        parser.error(f"--times is at least 1, and the parts are {', '.join(CASES)}")
    print(f"{commit()}, {machine()}; {given.times} kills each\n")
    print("| killed | until | median | longest |\n|---|---|---|---|", flush=True)
    for servers, names in ((1, [name for name in chosen if name != LEADER]), (3, [LEADER] if LEADER in chosen else [])):
        if names:
            measure_all(names, servers, given.times)
    return 0


def measure_all(names: list[str], bus_servers: int, times: int) -> None:
    """Print a row for each, on one platform."""
    platform = Platform(processes=True, agents=2, gateways=2, bus_servers=bus_servers)
    with tempfile.TemporaryDirectory() as folder, platform:
        os.environ.update(SQUALL_SERVER_URL=platform.url, SQUALL_TOKEN=platform.token)
        with app.run():
            recovery = Recovery(platform, Path(folder))
            took: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(times):
                for name in names:
                    recovery.settle()
                    took[name].append(CASES[name][1](recovery, name))
    for name in names:
        print(f"| {name} | {CASES[name][0]} | {statistics.median(took[name]):.2f} s | {max(took[name]):.2f} s |")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
