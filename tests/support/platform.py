"""The harness's platform with what tests want besides: programs and commands that use it.

`squall_verify.platform` owns the processes; this adds how tests run users' programs against it.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from squall_verify.platform import Part
from squall_verify.platform import Platform as HarnessPlatform
from squall_verify.processes import (
    Process,
    ancestors,
    belonging_to,
    descendants,
    peak_rss_mib,
    process,
    reset_peak,
    rss_mib,
    table,
)
from squall_verify.waiting import eventually

__all__ = [
    "ROOT",
    "SQUALL",
    "Part",
    "Platform",
    "Process",
    "ancestors",
    "belonging_to",
    "descendants",
    "eventually",
    "peak_rss_mib",
    "process",
    "reset_peak",
    "rss_mib",
    "table",
]

ROOT = Path(__file__).resolve().parents[2]
SQUALL = Path(sys.executable).with_name("squall")


@dataclass
class Platform(HarnessPlatform):
    """`with Platform(processes=True, agents=2) as platform: platform.run("prog.py")`; it leaves nothing behind."""

    def popen(self, *command: str | Path, gateway: Part | None = None, **more: str) -> subprocess.Popen[str]:
        """Start a program that uses this platform; output is captured, errors apart."""
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.client_environment(gateway=gateway, **more),
            start_new_session=True,
        )

    def run(
        self, program: str | Path, *arguments: object, gateway: Part | None = None, timeout_s: float = 60, **more: str
    ) -> str:
        """Run a Python program that uses this platform; its output. Fails when it fails."""
        return self._finish(
            self.popen(sys.executable, program, *map(str, arguments), gateway=gateway, **more), timeout_s, check=True
        ).stdout

    def squall(self, *arguments: object, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the CLI against this platform."""
        return self._finish(self.popen(SQUALL, *map(str, arguments)), timeout_s, check=check)

    def _finish(
        self, child: subprocess.Popen[str], timeout_s: float, *, check: bool
    ) -> subprocess.CompletedProcess[str]:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            raise AssertionError(f"{child.args!r} did not end within {timeout_s} s\n{out}\n{err}") from None
        if check and child.returncode:
            raise AssertionError(f"{child.args!r} ended with {child.returncode}\n{out}\n{err}")
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)
