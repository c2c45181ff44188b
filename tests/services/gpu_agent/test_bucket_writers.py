"""Whoever writes to a file of a bucket: whether it was killed, on kernels that remember it and on those that do not."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from squall_gpu_agent.buckets.writers import Writer


@pytest.fixture(params=["remembered", "forgotten"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One that says how a process ended whose parent has heard of it, or one that is too old to."""
    if request.param == "forgotten":

        def unknown(*_: object) -> bytes:
            raise OSError

        monkeypatch.setattr(fcntl, "ioctl", unknown)
    return str(request.param)


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_who_was_killed_is_known_when_its_parent_has_heard_of_it(kernel: str, *, ends_by_itself: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    writer = Writer(process.pid)
    assert not writer.was_killed()
    if ends_by_itself:
        writer.has_closed = True  # the kernel has made it wait for that
        process.stdin.write(b"\n")
    else:
        process.kill()
    process.stdin.close()
    process.wait(60)

    assert writer.was_killed() is not ends_by_itself
    writer.close()


def test_who_is_being_killed_is_known_before_its_parent_has_heard_of_it(kernel: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = Writer(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert writer.was_killed()
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdin is not None
    process.stdin.close()
    writer.close()
