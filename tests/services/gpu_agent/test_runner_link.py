"""The talk with a runner, with the test at the runner's end of the socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from squall_gpu_agent.backend import Exit, InputRequest, Lost, NotBegun, Output
from squall_gpu_agent.runner_link import BUNCH_FROM, RunnerLink
from squall_runner.frames import FromRunner, encode

CALLS = ("fc-1", "fc-2")
TIMES = dict.fromkeys(("read_ns", "started_ns", "ended_ns", "written_ns"), 1)


async def test_a_result_is_heard_though_a_write_finds_the_runner_dead(tmp_path: Path) -> None:
    ours, runners = socket.socketpair()
    link = RunnerLink("ta-1", tmp_path, tmp_path, lambda log: None)
    await link.open(ours, {})
    runners.sendall(encode(FromRunner.READY, {"booted_ns": 1, "phases": [], "lines_up": True}))
    await link.started
    async with asyncio.TaskGroup() as group:
        ends = [group.create_task(link.run(InputRequest(call=call, payload=b""))) for call in CALLS]
        await asyncio.sleep(0)
        runners.sendall(encode(FromRunner.OUTPUT, {"call": CALLS[0], "index": 0, "items": 0, **TIMES}, b"done"))
        runners.close()
        link.recall()  # before the loop has looked at the socket
        await link.closed
        exit = Exit(code=None, signal=9, reason="killed")
        link.ended(exit)
    first, second = (end.result() for end in ends)
    assert isinstance(first, Output)
    assert first.payload == b"done"
    assert not isinstance(second, NotBegun)  # its turn had come
    assert not link.running


async def test_what_a_runner_said_while_it_was_left_alone_is_heard_when_it_has_died(tmp_path: Path) -> None:
    """A runner with enough to do is not listened to for a moment; what it says meanwhile lies in the socket."""
    calls = [f"fc-{number}" for number in range(2 * BUNCH_FROM + 2)]
    ours, runners = socket.socketpair()
    link = RunnerLink("ta-1", tmp_path, tmp_path, lambda log: None)
    await link.open(ours, {})
    runners.sendall(encode(FromRunner.READY, {"booted_ns": 1, "phases": [], "lines_up": True}))
    await link.started
    async with asyncio.TaskGroup() as group:
        ends = [group.create_task(link.run(InputRequest(call=call, payload=b""))) for call in calls]
        await asyncio.sleep(0)
        runners.sendall(encode(FromRunner.OUTPUT, {"call": calls[0], "index": 0, "items": 0, **TIMES}, b"done"))
        await ends[0]
        assert not link.listens
        for call in calls[1:-1]:
            runners.sendall(encode(FromRunner.OUTPUT, {"call": call, "index": 0, "items": 0, **TIMES}, b"done"))
        runners.close()
        await link.closed
        link.ended(Exit(code=None, signal=9, reason="killed"))
    assert all(isinstance(end.result(), Output) for end in ends[:-1])
    assert isinstance(ends[-1].result(), Lost)
