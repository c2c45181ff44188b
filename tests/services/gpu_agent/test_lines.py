"""Calls that wait in line inside a container: what becomes of them when their turn does not come there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.services.gpu_agent.fake_backend import FakeBackend, FakeContainer, output
from tests.services.gpu_agent.scene import Scene
from tests.support.eventually import eventually

from squall_contracts.calls import CallRequested
from squall_contracts.functions import FunctionRecord
from squall_contracts.nodes import ClaimState, claim_key
from squall_gpu_agent.backend import End, InputRequest
from squall_gpu_agent.results import cancelled
from squall_service.clock import SystemClock


class Short:
    """Code that returns at once, but for inputs of `slow`, which run until they are let go."""

    def __init__(self) -> None:
        self.slow: set[str] = set()
        self.go = asyncio.Event()
        self.began: list[str] = []

    async def __call__(self, container: FakeContainer, request: InputRequest) -> End:
        self.began.append(request.call)
        if request.call in self.slow:
            await self.go.wait()
        return output(b"done")


class SlowClock(SystemClock):
    """A hundredth of the machine's pace: however busy that is, the runs of these tests are short."""

    def __init__(self) -> None:
        self._wall, self._start = time.time(), time.monotonic()

    def now(self) -> float:
        return self._wall + (time.monotonic() - self._start) / 100

    def monotonic(self) -> float:
        return self._start + (time.monotonic() - self._start) / 100


class Queue:
    """A pool whose only container is known to run short calls."""

    def __init__(self, scene: Scene, code: Short, pool: str, function: FunctionRecord, backend: FakeBackend) -> None:
        self.scene, self.code, self.pool, self.function, self.backend = scene, code, pool, function, backend

    async def behind_a_slow_one(self, number: int) -> tuple[CallRequested, list[CallRequested]]:
        """A call that runs, and others in line behind it."""
        slow = self.scene.request(self.pool, self.function)
        self.code.slow.add(slow.call)
        waiting = [self.scene.request(self.pool, self.function) for _ in range(number)]
        await self.scene.accept(slow)
        await eventually(lambda: slow.call in self.code.began)
        for request in waiting:
            await self.scene.accept(request)
        lined_up = {request.call for request in waiting}
        await eventually(lambda: lined_up & {given.call for given in self.first.requests})
        return slow, waiting

    @property
    def first(self) -> FakeContainer:
        return self.backend.containers[0]


@asynccontextmanager
async def queue(scene: Scene) -> AsyncIterator[Queue]:
    code = Short()
    backend = FakeBackend({"f": code})
    backend.lines_up = True
    async with scene.agent(backend, clock=SlowClock()):
        pool, function = await scene.ready()
        for _ in range(20):  # the mean of run times begins with the first, which met a cold agent
            await scene.result(await scene.call(pool, function))
        yield Queue(scene, code, pool, function, backend)


async def test_a_call_in_line_behind_a_slow_one_begins_in_the_next_free_container(scene: Scene) -> None:
    async with queue(scene) as found:
        slow, waiting = await found.behind_a_slow_one(3)
        await scene.claim_in(await scene.propose(found.pool, found.function), ClaimState.READY)
        for call in waiting:
            assert (await scene.result(call)).container == found.backend.containers[1].id
        assert not await scene.recorded(slow)
        found.code.go.set()
        assert (await scene.result(slow)).container == found.first.id


async def test_of_a_container_that_dies_only_the_call_that_ran_is_a_loss(scene: Scene) -> None:
    async with queue(scene) as found:
        slow, waiting = await found.behind_a_slow_one(3)
        found.first.kill("exited with code 3")
        await scene.claim_in(await scene.propose(found.pool, found.function), ClaimState.READY)
        found.code.go.set()
        for call in waiting:
            assert (await scene.result(call)).outcome == "succeeded"
            assert not await scene.attempts(call)
        assert (await scene.result(slow)).outcome == "succeeded"
        assert [attempt.infra_failures for attempt in await scene.attempts(slow)] == [1]
        assert sorted(found.code.began[20:]) == sorted([slow.call, slow.call, *(call.call for call in waiting)])


async def test_a_call_that_is_cancelled_in_line_never_begins(scene: Scene) -> None:
    async with queue(scene) as found:
        slow, (waiting,) = await found.behind_a_slow_one(1)
        await scene.record(cancelled(waiting, 1.0))
        scene.cancel(waiting)
        await eventually(lambda: found.first.line.get((waiting.call, 0)) is None)
        found.code.go.set()
        assert (await scene.result(slow)).outcome == "succeeded"
        await scene.emptied(found.pool)
        assert waiting.call not in found.code.began


async def test_a_container_that_drains_gives_its_line_back(scene: Scene) -> None:
    async with queue(scene) as found:
        slow, waiting = await found.behind_a_slow_one(2)
        await scene.drain(claim_key(found.pool, 0))
        await scene.claim_in(await scene.propose(found.pool, found.function), ClaimState.READY)
        for call in waiting:
            assert (await scene.result(call)).container == found.backend.containers[1].id
        found.code.go.set()
        assert (await scene.result(slow)).container == found.first.id
