"""Commands beside a container: they see what its code sees, and do not outlive it."""

from __future__ import annotations

import asyncio

import pytest
from tests.sdk.runner.containers import Workshop, alive, descendants_of, images_dir, workshop
from tests.support.eventually import eventually

from squall_gpu_agent.executing import Executing

__all__ = ["images_dir", "workshop"]

pytestmark = pytest.mark.slow
LEAVES_A_CHILD = "sleep 300 & echo $! $$; exec sleep 300"


async def pids_in(printed: list[bytes]) -> list[int]:
    await eventually(lambda: b"\n" in b"".join(printed))
    return [int(word) for word in b"".join(printed).split()]


async def test_a_command_and_what_it_started_end_with_its_container(workshop: Workshop) -> None:
    container = await workshop.start("def f(): return 1")
    printed: list[bytes] = []
    command = ["sh", "-c", LEAVES_A_CHILD]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(Executing().run(container, command, 60, lambda _stream, data: printed.append(data)))
        child, own = await pids_in(printed)
        await container.stop()
        status, why = await running
    assert status is None
    assert why == "its container ended: stopped"
    await eventually(lambda: not alive(child) and not alive(own))


async def test_a_command_is_below_the_warden_which_ends_what_the_agent_leaves_when_it_dies(workshop: Workshop) -> None:
    container = await workshop.start("def f(): return 1")
    printed: list[bytes] = []
    command = ["sh", "-c", LEAVES_A_CHILD]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(Executing().run(container, command, 60, lambda _stream, data: printed.append(data)))
        child, own = await pids_in(printed)
        assert {child, own} <= set(descendants_of(await workshop.warden_pid()))
        running.cancel()
    await eventually(lambda: not alive(child) and not alive(own))
