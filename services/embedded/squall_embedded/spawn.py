"""Starts child processes that never outlive us. Free of asyncio, so that nats-server runs before that is imported."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29


def spawn(
    command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None, timer_slack_ns: int = 0
) -> subprocess.Popen[bytes]:
    """Starts a child whose output goes to `log`. It is killed when the thread that called this dies: call it from the
    main thread. `timer_slack_ns`: how late its timers may be, so that several end together; 0 = the kernel's 50 us."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=dict(env) if env is not None else None,
            # Away from the terminal's signals: who stops first is decided here. Not a session of its own: whoever must
            # kill all of the platform finds them by the session.
            process_group=0,
            preexec_fn=_before_exec(timer_slack_ns),  # noqa: PLW1509 - it makes three system calls and touches no lock
        )


def _before_exec(timer_slack_ns: int) -> Callable[[], None] | None:
    """What a child does between fork and exec; looked up before, as little as possible may happen there."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)
        if timer_slack_ns:
            prctl(_PR_SET_TIMERSLACK, timer_slack_ns, 0, 0, 0)

    return before_exec
