"""The fake clock keeps the contract of the real one."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.clock import FakeClock
from tests.support.eventually import eventually

from squall_service.clock import Clock, SystemClock


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()])
async def test_time_passes_while_asleep(clock: Clock) -> None:
    before = clock.monotonic(), clock.now()
    async with asyncio.TaskGroup() as tasks:
        sleeping = tasks.create_task(clock.sleep(0.02))
        if isinstance(clock, FakeClock):
            await clock.advance(0.02)
        await eventually(sleeping.done)
    assert clock.monotonic() - before[0] >= 0.02
    assert clock.now() - before[1] >= 0.019


async def test_a_fake_clock_wakes_sleepers_in_order_each_at_its_moment() -> None:
    clock = FakeClock(100)
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        for _ in range(2):
            await clock.sleep(seconds)
            woken.append(clock.now())

    async with asyncio.TaskGroup() as tasks:
        for seconds in (3, 2):
            tasks.create_task(sleeper(seconds))
        await clock.advance(1)
        assert (woken, clock.sleeping) == ([], 2)
        await clock.advance(10)
    assert woken == [102, 103, 104, 106]
    assert clock.now() == 111
