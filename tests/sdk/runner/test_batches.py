"""What a container does with the inputs of a batched function."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.runner.containers import Workshop, call, request_of, value
from tests.support.eventually import eventually

from squall.spec import BatchPolicy
from squall_gpu_agent.backend import Container, Failed, FailureKind

pytestmark = pytest.mark.slow

SIZES = """
def f(x, y):
    return [(a + b, len(x)) for a, b in zip(x, y)]
"""
LONG_MS = 600_000
"""No batch of these tests is complete because its time has passed: they are full, or have no time."""


async def batched(workshop: Workshop, source: str, size: int, wait_ms: int = LONG_MS, **more: Any) -> Container:
    return await workshop.start(
        source, max_inputs=size * more.pop("at_once", 1), batching=BatchPolicy(size, wait_ms), **more
    )


async def test_a_full_batch_is_one_call_with_lists(workshop: Workshop) -> None:
    container = await batched(workshop, SIZES, 3)
    ends = await asyncio.gather(call(container, 1, 10), call(container, 2, y=20), call(container, y=30, x=3))
    assert [value(end) for end in ends] == [(11, 3), (22, 3), (33, 3)]


async def test_a_batch_that_has_waited_long_enough_runs_with_what_it_has(workshop: Workshop) -> None:
    container = await batched(workshop, SIZES, 100, wait_ms=10)
    assert value(await call(container, 1, 10)) == (11, 1)


async def test_async_code_gets_lists_too(workshop: Workshop) -> None:
    container = await batched(workshop, "async def f(x): return [len(x)] * len(x)", 2)
    assert [value(end) for end in await asyncio.gather(call(container, 1), call(container, 2))] == [2, 2]


async def test_a_method_is_batched_with_its_instance(workshop: Workshop) -> None:
    source = """
        class C:
            def add(self, x): return [each + self.base() for each in x]
            def base(self): return 100
        """
    container = await batched(workshop, source, 2, qualname="C", is_class=True, methods=["add"])
    ends = await asyncio.gather(call(container, 1, method="add"), call(container, 2, method="add"))
    assert [value(end) for end in ends] == [101, 102]


async def test_an_exception_reaches_every_caller_of_the_batch(workshop: Workshop) -> None:
    container = await batched(workshop, "def f(x): raise ValueError(len(x))", 2)
    ends = await asyncio.gather(call(container, 1), call(container, 2))
    for end in ends:
        assert isinstance(end, Failed)
        assert (end.kind, end.type_name, end.message) == (FailureKind.USER, "ValueError", "2")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return x[0]", "must return a list, got int"),
        ("return [1]", "one result for each of 2 inputs, got 1"),
    ],
)
async def test_what_is_no_list_of_the_same_length_fails_the_batch(workshop: Workshop, body: str, said: str) -> None:
    container = await batched(workshop, f"def f(x): {body}", 2)
    for end in await asyncio.gather(call(container, 1), call(container, 2)):
        assert isinstance(end, Failed)
        assert end.type_name == "InvalidError"
        assert said in end.message


async def test_an_input_that_does_not_fit_fails_alone(workshop: Workshop) -> None:
    container = await batched(workshop, SIZES, 3)
    wrong, *right = await asyncio.gather(call(container, 1), call(container, 2, 20), call(container, 3, 30))
    assert isinstance(wrong, Failed)
    assert "'y' is missing" in wrong.message
    assert [value(end) for end in right] == [(22, 2), (33, 2)]


async def test_one_result_that_cannot_be_sent_fails_alone(workshop: Workshop) -> None:
    container = await batched(workshop, "def f(x): return [(i for i in ()) if each else 7 for each in x]", 2)
    wrong, right = await asyncio.gather(call(container, True), call(container, False))
    assert isinstance(wrong, Failed)
    assert wrong.kind is FailureKind.SERIALIZATION
    assert value(right) == 7


async def test_a_waiting_input_that_is_cancelled_leaves_the_batch(workshop: Workshop) -> None:
    container = await batched(workshop, SIZES, 2)
    gone = request_of(1, 10, call="fc-gone")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(container.run(gone))
        await eventually_running(container, 1)
        container.cancel("fc-gone", 0)
        end = await waiting
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.CANCELLED
    ends = await asyncio.gather(call(container, 2, 20), call(container, 3, 30))
    assert [value(each) for each in ends] == [(22, 2), (33, 2)]


RUNNING = """
import os, time
def f(x):
    open(x[0], "w").close()
    while not os.path.exists(x[0] + ".go"):
        time.sleep(0.005)
    return list(x)
"""


async def test_the_others_of_a_running_batch_outlive_the_cancel_of_one(workshop: Workshop, tmp_path: Path) -> None:
    container = await batched(workshop, RUNNING, 2)
    flag = tmp_path / "flag"
    async with asyncio.TaskGroup() as group:
        first = group.create_task(container.run(request_of(str(flag), call="fc-first")))
        await eventually_running(container, 1)
        second = group.create_task(container.run(request_of("second", call="fc-second")))
        await eventually(flag.exists)
        container.cancel("fc-first", 0)
        cancelled = await first
        flag.with_suffix(".go").touch()
    assert isinstance(cancelled, Failed)
    assert cancelled.kind is FailureKind.CANCELLED
    assert value(second.result()) == "second"


async def test_a_batch_that_nobody_wants_any_more_is_interrupted(workshop: Workshop, tmp_path: Path) -> None:
    container = await batched(workshop, RUNNING, 2)
    flag = tmp_path / "flag"
    async with asyncio.TaskGroup() as group:
        first = group.create_task(container.run(request_of(str(flag), call="fc-first")))
        await eventually_running(container, 1)
        second = group.create_task(container.run(request_of("second", call="fc-second")))
        await eventually(flag.exists)
        container.cancel("fc-first", 0)
        container.cancel("fc-second", 0)
    ends = [first.result(), second.result()]
    assert [end.kind for end in ends if isinstance(end, Failed)] == [FailureKind.CANCELLED] * 2
    assert isinstance(await call_two(container), Failed)


async def call_two(container: Container) -> Any:
    """The container goes on after an interrupted batch: it answers (with a failure: its argument is no file)."""
    return (await asyncio.gather(call(container, 1), call(container, 2)))[0]


async def test_batches_run_side_by_side_where_concurrent_says_so(workshop: Workshop) -> None:
    source = """
        import threading
        together = threading.Barrier(2)
        def f(x):
            together.wait(10)
            return [len(x)] * len(x)
        """
    container = await batched(workshop, source, 2, at_once=2)
    assert [value(end) for end in await asyncio.gather(*(call(container, x) for x in range(4)))] == [2] * 4


async def test_the_agent_is_told_when_the_batch_begins(workshop: Workshop) -> None:
    container = await batched(workshop, SIZES, 2)
    begun: list[str] = []
    first, second = request_of(1, 2, call="fc-1"), request_of(3, 4, call="fc-2")
    async with asyncio.TaskGroup() as group:
        group.create_task(container.run(replace(first, on_begun=lambda: begun.append("fc-1"))))
        await eventually_running(container, 1)
        assert begun == []
        group.create_task(container.run(replace(second, on_begun=lambda: begun.append("fc-2"))))
    assert sorted(begun) == ["fc-1", "fc-2"]


async def eventually_running(container: Container, number: int) -> None:
    await eventually(lambda: len(container.running) == number)
