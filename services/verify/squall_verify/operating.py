"""The operator of a mixed load: carries out acts of the plan with the same commands as people, one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import LocalPlatformError
from squall_service.clock import SystemClock
from squall_verify.evidence import Deployed
from squall_verify.faults.registry import Hit, node_name
from squall_verify.invariants.histories import DRAIN
from squall_verify.nemesis import Nemesis
from squall_verify.plan import Act
from squall_verify.platform import Platform

APP = "verify"
COMMAND_S = 60.0
DRAINED_S = 45.0
"""More than the longest input of the program, and the end of its container."""
SCALE = """
import json, sys, squall
squall.Function.from_name(sys.argv[1], sys.argv[2]).update_autoscaler(**json.loads(sys.argv[3]))
"""
_CLOCK = SystemClock()


@dataclass
class Operator:
    """One person at one terminal."""

    platform: Platform
    deploy: Callable[[int], None]
    deployed: list[Deployed]
    """Every version that was made the present one, also by going back."""
    nemesis: Nemesis
    """Hears of what took a machine away, and of what did not work."""
    acted: list[tuple[float, float, str]] = field(default_factory=list)
    """Began, ended, and what was done."""

    def work(self, acts: Sequence[Act], started: float) -> None:
        """All of them; one that is late begins when the one before it has ended."""
        for act in acts:
            threading.Event().wait(max(0.0, started + act.at_s - _CLOCK.now()))
            began = _CLOCK.now()
            try:
                what = self._do(act.name, act.given)
            except (LocalPlatformError, subprocess.TimeoutExpired) as error:
                self.nemesis.skipped.append(f"{act.name} at {act.at_s:.1f} s: {error}")
            else:
                self.acted.append((began, _CLOCK.now(), what))

    def _do(self, name: str, given: Mapping[str, Any]) -> str:
        match name:
            case "deploy":
                self.deploy(given["version"])
                return f"deploy of version {given['version']}"
            case "rollback":
                return f"rollback to version {self._roll_back()}"
            case "scale":
                settings = json.dumps(given["settings"])
                self._run(sys.executable, "-P", "-c", SCALE, APP, given["function"], settings)
                return f"autoscaler of {given['function']}: {settings}"
            case "drain":
                return self._drain(given["node"], given["hold_s"])
            case _:
                raise LookupError(f"no act is named {name!r}")

    def _roll_back(self) -> int:
        own = [each for each in self.deployed if each.workspace == "main"]
        before = max(each.version for each in own) - 1  # what was deployed last before it, not what was gone back to
        began = _CLOCK.now()
        # It is not known whether a command that fails was carried out: from its beginning either may be present.
        self.deployed.append(Deployed(version=before, began=began, ended=float("inf")))
        self._squall("app", "rollback", APP)
        self.deployed[-1] = Deployed(version=before, began=began, ended=_CLOCK.now())
        return before

    def _drain(self, number: int, hold_s: float) -> str:
        agents = self.platform.parts_named("gpu-agent")
        node = node_name(agents[number % len(agents)])
        began = _CLOCK.now()
        try:
            self._squall("node", "drain", node, "--wait", DRAINED_S)
            took_s = _CLOCK.now() - began
            threading.Event().wait(hold_s)
        finally:
            self._squall("node", "resume", node)
            self.nemesis.note(DRAIN, began, Hit(agents[number % len(agents)].name, node))
        return f"node {node} drained in {took_s:.1f} s, and taken back"

    def trace(self, call: str) -> str:
        """As `squall trace` draws it; why not, if it cannot."""
        try:
            return self._squall("trace", call)
        except LocalPlatformError as error:
            return error.message

    def _squall(self, *words: object) -> str:
        return self._run(sys.executable, "-P", "-m", "squall.cli.main", *map(str, words))

    def _run(self, *command: str) -> str:
        answer = subprocess.run(
            command,
            env=self.platform.client_environment(),
            cwd=self.platform.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if answer.returncode:
            raise LocalPlatformError(f"{' '.join(command[-3:])}: {answer.stderr.strip()[-300:]}")
        return answer.stdout
