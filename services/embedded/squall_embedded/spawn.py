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


def spawn(
    command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a child whose output goes to `log`. It is killed when the thread that called this dies: call it from the
    main thread."""
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
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it makes two system calls and touches no lock
        )


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does between fork and exec; looked up before, as little as possible may happen there."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return die_with_parent
