"""One run: platform, callers, nemesis; then healing, the liveness phase and the collection of evidence."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from squall.config import ServerAddress
from squall.errors import LocalPlatformError
from squall_bus import connect
from squall_contracts import topology
from squall_service.clock import SystemClock
from squall_verify import collecting, files, hearing, load, sandboxed, settling, stepping, ticking, watching
from squall_verify.client import log_name, ready_name
from squall_verify.evidence import GUEST, MAIN, Deployed, Evidence, Settled
from squall_verify.failpoints import FailPoints
from squall_verify.faults import Site
from squall_verify.faults.steps import POINTS_FOLDER
from squall_verify.nemesis import Nemesis
from squall_verify.operating import Operator
from squall_verify.plan import CLIENTS, GUEST_CLIENT, MAX_PENDING, Operation, Plan, sharing
from squall_verify.platform import Platform
from squall_verify.processes import end_with_parent
from squall_verify.settings import SANDBOX, VerifySettings
from squall_verify.state import Heard
from squall_verify.tenants import admit_guest
from squall_verify.waiting import eventually

PROGRAM = Path(__file__).with_name("program") / "work.py"
DEPLOY_S = 90.0
HEAL_S = 60.0
READY_S = 60.0
LIVE_S = 120.0
CALLERS_S = 180.0
"""More than a caller waits for one result."""
EMPTY_S = 60.0
TOLD_S = 120.0
READ_AGAIN = 60
EVERYBODY = range(GUEST_CLIENT + 1)
_CLOCK = SystemClock()


@dataclass
class Run:
    """One run in its folder."""

    settings: VerifySettings
    plan: Plan
    folder: Path
    say: Callable[[str], None]
    deployed: list[Deployed] = field(default_factory=list)
    guest_token: str = ""
    paused: dict[str, float] = field(default_factory=dict)
    """Schedules, and when they were."""

    def __post_init__(self) -> None:
        self.effects = files.make_effects(self.folder / "shared")
        points = FailPoints(self.folder / POINTS_FOLDER)
        (self.folder / POINTS_FOLDER).mkdir()
        self.receiver = hearing.Receiver()
        self.platform = Platform(
            processes=True,
            agents=self.settings.agents,
            gateways=self.settings.gateways,
            environment={
                "SQUALL_GATEWAY_MAX_PENDING": str(MAX_PENDING),
                **hearing.PLATFORM,
                **points.environment,
                **self._shared(),
            },
            bus_servers=self.settings.bus_servers,
            arguments=("--backend", self.settings.backend) if self._sandboxed else (),
        )
        self.nemesis = Nemesis(Site(self.platform, self.folder))
        self.operator = Operator(self.platform, self._keep_deploying, self.deployed, self.nemesis)
        self.watcher = watching.Watcher(self.platform.bus_settings)

    @property
    def _sandboxed(self) -> bool:
        return self.settings.backend == SANDBOX

    def _shared(self) -> dict[str, str]:
        """What sandboxes see of this machine: the folder that user code writes its effects to."""
        return {sandboxed.SHARED: str(self.effects.parent)} if self._sandboxed else {}

    def evidence(self) -> Evidence:
        """Does everything, and hands over what was found."""
        (self.folder / "plan.json").write_text(json.dumps(self.plan.as_json(), indent=1))
        if self._sandboxed:
            sandboxed.make_base(self.platform.data / "images", self.folder)
        with self.receiver.listening(), self.platform:
            self.guest_token = asyncio.run(admit_guest(self.platform))
            for workspace in (MAIN, GUEST):
                self._keep_deploying(1, workspace)
            self.say(f"platform of {len(self.platform.parts())} processes; {self.settings.seconds:g} s of faults")
            with _thread(self.watcher.run, self.watcher.stop), self._stalls():
                self._attack()
                healed_at = self._heal()
                for token in (self.platform.token, self.guest_token):
                    self.paused |= ticking.pause(ServerAddress(self.platform.url, token))
                self.say("healed; waiting until everything has ended")
                settled = asyncio.run(self._settle(healed_at))
            evidence = self._collect(settled)
            if self.plan.mixed:
                evidence = replace(evidence, notes=self._notes(evidence))
            (self.folder / "platform.log").write_text(self.platform.log())
            tags = sandboxed.tags(self.platform.data)
        if not self._sandboxed:
            return evidence
        return replace(evidence, sandboxes=sandboxed.left_behind(tags, self.platform.data))

    # ------------------------------------------------------------------ attack

    def _attack(self) -> None:
        callers = [self._caller(number, "plan.json", self.settings.seconds) for number in EVERYBODY]
        started = self._start(callers, "plan.json")
        deploying = threading.Thread(target=self._deploy_again, args=(started,), daemon=True)
        operating = threading.Thread(target=self.operator.work, args=(self.plan.acts, started), daemon=True)
        deploying.start()
        operating.start()
        self.nemesis.run(self.plan.faults, started)
        deploying.join()
        operating.join()
        self._wait_for(callers)

    def _start(self, callers: Sequence[subprocess.Popen[bytes]], plan: str) -> float:
        """Lets them begin, all at once; when that is. One that has ended by itself is not waited for."""
        file = self._start_file(plan)

        def ready() -> bool:
            return all(ready_name(file, n).exists() or each.poll() is not None for n, each in enumerate(callers))

        eventually(ready, within_s=READY_S, what="the callers do not start")
        started = _CLOCK.now() + 0.2
        staged = file.with_suffix(".new")
        staged.write_text(str(started))
        staged.rename(file)
        return started

    def _start_file(self, plan: str) -> Path:
        return self.folder / f"start-{Path(plan).stem}"

    def _caller(self, number: int, plan: str, seconds: float) -> subprocess.Popen[bytes]:
        gateways = self.platform.parts_named("gateway")
        mine, other = gateways[number % len(gateways)], gateways[(number + 1) % len(gateways)]
        log = self.folder / log_name(number)
        workspace = GUEST if number == GUEST_CLIENT else MAIN
        command = [sys.executable, "-P", "-m", "squall_verify.client", str(self.folder / plan), str(number), str(log)]
        return subprocess.Popen(
            [*command, str(self._start_file(plan)), str(seconds), other.url, self.receiver.url],
            env=self.platform.client_environment(gateway=mine, SQUALL_TOKEN=self._token(workspace)),
            stdin=subprocess.DEVNULL,
            stderr=(self.folder / f"client-{number}.stderr").open("ab"),
            preexec_fn=end_with_parent,  # noqa: PLW1509 — one prctl, looked up before the fork
        )

    def _token(self, workspace: str) -> str:
        return self.guest_token if workspace == GUEST else self.platform.token

    def _wait_for(self, callers: list[subprocess.Popen[bytes]]) -> None:
        """A caller that does not end has operations without an answer; the checkers will say so."""
        until = _CLOCK.monotonic() + CALLERS_S
        for caller in callers:
            try:
                caller.wait(max(0.1, until - _CLOCK.monotonic()))
            except subprocess.TimeoutExpired:
                caller.kill()
                caller.wait()

    def _deploy(self, version: int, workspace: str) -> None:
        half_an_agent = len(os.sched_getaffinity(0)) / self.settings.agents / 2
        answer = subprocess.run(
            [sys.executable, "-P", "-m", "squall.cli.main", "deploy", str(PROGRAM)],
            env=self.platform.client_environment(
                SQUALL_TOKEN=self._token(workspace),
                VERIFY_EFFECTS=str(self.effects),
                VERIFY_HOG_CPU=str(half_an_agent),
                VERIFY_VERSION=str(version),
            ),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEPLOY_S,
            check=False,
        )
        if answer.returncode:
            raise LocalPlatformError(f"version {version} could not be deployed: {answer.stdout}{answer.stderr}")

    def _deploy_again(self, started: float) -> None:
        for number, at_s in enumerate(self.plan.deploys):
            threading.Event().wait(max(0.0, started + at_s - _CLOCK.now()))
            self._keep_deploying(number + 2)

    def _keep_deploying(self, version: int, workspace: str = MAIN) -> None:
        """As often as it takes: a command that finds no gateway gives up at once."""
        began, reason = _CLOCK.now(), ""
        while _CLOCK.now() < began + DEPLOY_S:
            try:
                self._deploy(version, workspace)
            except (LocalPlatformError, subprocess.TimeoutExpired) as error:
                reason = str(error)
                threading.Event().wait(1.0)
                continue
            self.deployed.append(Deployed(version=version, began=began, ended=_CLOCK.now(), workspace=workspace))
            return
        # It may have come through all the same: from now on it may be the present version.
        self.nemesis.skipped.append(f"deploy of version {version}: {reason}")
        self.deployed.append(Deployed(version=version, began=began, ended=float("inf"), workspace=workspace))

    @contextmanager
    def _stalls(self) -> Iterator[None]:
        over = threading.Event()
        with _thread(lambda: self.nemesis.watch_stalls(over), over.set):
            yield

    # ------------------------------------------------------------------ afterwards

    def _collect(self, settled: Settled) -> Evidence:
        address = ServerAddress(self.platform.url, self.platform.token)
        laws = asyncio.run(collecting.laws(self.platform, self.watcher.law, self.paused))
        steps, web_runs = stepping.steps(self.folder), files.web_runs(self.effects)
        calls = [each.call for each in laws.accepted if each.workspace == MAIN and each.kind != "map"]
        return replace(
            laws,
            seed=self.plan.seed,
            seconds=self.plan.seconds,
            effects=files.effects(self.effects),
            seen=files.seen(self.folder),
            state=replace(laws.state, steps=steps, web_runs=web_runs, heard=self._heard()),
            happened=tuple(sorted(self.nemesis.happened, key=lambda each: each.began)),
            skipped=tuple(self.nemesis.skipped),
            deployed=tuple(self.deployed),
            states=collecting.states(address, calls, Random(f"{self.plan.seed} states")),
            samples=tuple(self.watcher.samples),
            settled=settled,
        )

    def _heard(self) -> tuple[Heard, ...]:
        addresses = {each: ServerAddress(self.platform.url, self._token(each)) for each in (MAIN, GUEST)}
        return self.receiver.heard({each: hearing.secret_of(address) for each, address in addresses.items()})

    def _notes(self, evidence: Evidence) -> dict[str, Any]:
        """Of a mixed load: what the operator did, and where the time of the slowest call went."""
        found = load.slowest(evidence)
        notes: dict[str, Any] = {"acted": self.operator.acted}
        if found:
            notes |= {"slowest": found[0], "slowest_s": found[1], "trace": self.operator.trace(found[0])}
        return notes

    def _heal(self) -> float:
        """Every part runs again. The nemesis has taken back its own."""
        eventually(self.platform.ready, within_s=HEAL_S, what="a part was not started again, or is not ready")
        return _CLOCK.now()

    async def _settle(self, healed_at: float) -> Settled:
        async with connect(self.platform.bus_settings(), topology.build()) as bus:
            settled_at, waiting = await settling.until_empty(bus, settling.unended, LIVE_S)
            canaries = await asyncio.to_thread(self._after)
            await asyncio.to_thread(self._share)
            await settling.until_empty(bus, settling.unended, LIVE_S if settled_at is not None else 0.0)
            await settling.until_empty(bus, hearing.untold, TOLD_S)
            idle_at = _CLOCK.now()
            empty_at, left = await settling.until_empty(bus, settling.containers, EMPTY_S)
        shift = idle_at - settled_at if settled_at is not None else 0.0
        return Settled(
            healed_at=healed_at,
            settled_at=settled_at,
            waiting=waiting,
            canaries=canaries,
            # The canaries kept the pools busy until then.
            empty_at=None if empty_at is None else empty_at - shift,
            left=left,
        )

    def _after(self) -> tuple[str, ...]:
        """Canaries through each gateway, and results read again through the other one; what went wrong."""
        seen = files.seen(self.folder)
        calls = sorted({line.call for line in seen if line.what == "ack"})
        dice = Random(f"{self.plan.seed} after")
        chosen = dice.sample(calls, min(READ_AGAIN, len(calls)))
        operations = [Operation(f"canary-{n}-{i}", n, 0.0, "remote") for n in EVERYBODY for i in range(3)]
        operations += [Operation(f"final-{n}", n, 0.0, "final") for n in (0, GUEST_CLIENT)]
        asked = {line.op: number for number in EVERYBODY for line in files.log_of(self.folder / log_name(number))}
        owner = {line.call: line.op for line in seen if line.what == "ack"}
        # Those of the first workspace by another one than who asked, so through another gateway.
        reader = {op: number if number == GUEST_CLIENT else (number + 1) % CLIENTS for op, number in asked.items()}
        self._play("after.json", operations, [(reader[owner[call]], owner[call], call) for call in chosen])
        lines = [line for line in files.seen(self.folder) if line.op.startswith("canary-")]
        done = {line.op for line in lines if line.what == "done"}
        asked_for = {operation.id for operation in operations if operation.form != "final"}
        return tuple(sorted(asked_for - done))

    def _share(self) -> None:
        """A flood of one workspace, and single calls of the other."""
        self._play("share.json", sharing(self.settings.agents), [])

    def _play(self, name: str, operations: Sequence[Operation], reread: Sequence[tuple[int, str, str]]) -> None:
        plan = {"operations": [asdict(operation) for operation in operations], "reread": reread}
        (self.folder / name).write_text(json.dumps(plan))
        callers = [self._caller(number, name, CALLERS_S) for number in EVERYBODY]
        self._start(callers, name)
        self._wait_for(callers)


@contextmanager
def _thread(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


def scratch(settings: VerifySettings) -> Path:
    """The folder of the evidence, empty."""
    folder = settings.keep
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="squall-verify-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(os.scandir(folder)):
        raise LocalPlatformError(f"{folder} is not empty", fix="Name a folder that does not exist yet.")
    return folder
