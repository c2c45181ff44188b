"""Cancelling and stopping: each kind of code in its own way."""

from __future__ import annotations

import asyncio

import pytest
from tests.sdk.runner.containers import Workshop, call, request_of, value
from tests.support.eventually import eventually

from squall_gpu_agent.backend import Container, End, Failed, FailureKind, InputRequest, Lost

pytestmark = pytest.mark.slow


async def cancelled_once_it_prints(workshop: Workshop, container: Container, request: InputRequest) -> End:
    """Run it, cancel it when it has printed something."""
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(container.run(request))
        await eventually(lambda: any(log.call == request.call for log in workshop.logs))
        container.cancel(request.call, request.index)
        return await running


async def test_async_code_gets_a_cancelled_error_and_the_container_goes_on(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import asyncio
        async def f(forever):
            if not forever: return 1
            print('go', flush=True)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                print('cleaning up')
                raise
        """
    )
    end = await cancelled_once_it_prints(workshop, container, request_of(True))
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.CANCELLED
    assert "cleaning up" in workshop.printed(container)
    assert value(await call(container, False)) == 1


async def test_async_inputs_are_cancelled_one_by_one(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import asyncio
        go = asyncio.Event()
        async def f(x):
            print('go', x, flush=True)
            if x == 0: await asyncio.sleep(60)
            if x == 1: await go.wait()
            if x == 2: go.set()
            return x
        """,
        max_inputs=3,
    )
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        other = tasks.create_task(call(container, 1))
        end = await cancelled_once_it_prints(workshop, container, request_of(0))
        assert isinstance(end, Failed)
        await call(container, 2)
        assert value(await other) == 1


@pytest.mark.parametrize("body", ["time.sleep(60)", "while True: pass", "threading.Event().wait(60)"])
async def test_sync_single_slot_code_gets_an_input_cancellation(workshop: Workshop, body: str) -> None:
    container = await workshop.start(
        f"""
        import threading, time
        from squall.errors import InputCancellation
        def f(forever):
            if not forever: return 1
            try:
                print('go', flush=True)
                {body}
            except Exception:
                print('must not be swallowed')
            except InputCancellation:
                print('cancelled', flush=True)
                raise
        """
    )
    end = await cancelled_once_it_prints(workshop, container, request_of(True))
    assert isinstance(end, Failed)
    assert (end.kind, end.type_name) == (FailureKind.CANCELLED, "InputCancellation")
    assert workshop.printed(container) == "go\ncancelled\n"
    assert value(await call(container, False)) == 1


async def test_code_that_prints_without_end_is_cancelled_without_breaking_the_stream(workshop: Workshop) -> None:
    container = await workshop.start("def f(forever):\n    while forever: print('x' * 2000)\n    return 'fine'")
    for _ in range(10):
        end = await cancelled_once_it_prints(workshop, container, request_of(True))
        assert isinstance(end, Failed)
        assert end.kind is FailureKind.CANCELLED
        assert value(await call(container, False)) == "fine"


async def test_a_sync_generator_is_closed_when_it_is_cancelled(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import time
        def f():
            try:
                yield 1
                print('go', flush=True)
                time.sleep(60)
            finally:
                print('closed')
        """
    )
    end = await cancelled_once_it_prints(workshop, container, request_of())
    assert isinstance(end, Failed)
    assert (end.kind, end.items) == (FailureKind.CANCELLED, 1)
    assert workshop.printed(container) == "go\nclosed\n"


async def test_cancelling_a_generator_that_waits_for_credit(workshop: Workshop) -> None:
    container = await workshop.start(
        "def f():\n    print('go', flush=True)\n    n = 0\n    while True:\n        yield n\n        n += 1"
    )
    end = await cancelled_once_it_prints(workshop, container, request_of())
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.CANCELLED


async def test_sync_code_in_threads_takes_the_whole_container_with_it(workshop: Workshop) -> None:
    container = await workshop.start(
        "import time\ndef f(x):\n    print('go', x, flush=True)\n    time.sleep(60)", max_inputs=2
    )
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        other = tasks.create_task(call(container, 1))
        end = await cancelled_once_it_prints(workshop, container, request_of(0))
        lost = await other
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.CANCELLED
    assert isinstance(lost, Lost)
    assert lost.exit.reason.startswith("interrupted")


async def test_cancelling_an_input_that_has_ended_changes_nothing(workshop: Workshop) -> None:
    container = await workshop.start("def f(): return 1")
    await call(container, call="fc-1")
    container.cancel("fc-1", 0)
    assert value(await call(container, call="fc-1")) == 1


async def test_cancel_right_after_the_start_is_never_lost(workshop: Workshop) -> None:
    for source in ("import time\ndef f(): time.sleep(60)", "import asyncio\nasync def f(): await asyncio.sleep(60)"):
        container = await workshop.start(source)
        for _ in range(20):
            request = request_of()
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                running = tasks.create_task(container.run(request))
                await asyncio.sleep(0)
                container.cancel(request.call, 0)
                end = await running
            assert isinstance(end, Failed)
            assert end.kind is FailureKind.CANCELLED


async def test_code_that_ignores_its_cancellation_ends_normally_or_by_kill(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import time
        def f():
            while True:
                try:
                    print('go', flush=True)
                    time.sleep(60)
                except BaseException:
                    pass
        """
    )
    request = request_of()
    async with asyncio.timeout(15), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(container.run(request))
        await eventually(lambda: workshop.printed(container) == "go\n")
        container.cancel(request.call, 0)
        await eventually(lambda: workshop.printed(container) == "go\ngo\n")
        container.kill("killed: the function ran longer than its timeout (1 s)")
        end = await running
    assert isinstance(end, Lost)
    assert end.exit.reason == "killed: the function ran longer than its timeout (1 s)"
    assert end.exit.oom is False


async def test_stop_interrupts_running_inputs_and_drain_waits_for_them(workshop: Workshop) -> None:
    container = await workshop.start(
        "import time\ndef f(s):\n    print('go', flush=True)\n    time.sleep(s)\n    return 'done'"
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(call(container, 0.2))
        await eventually(lambda: container.running)
        await container.drain()
        assert value(await running) == "done"
        running = tasks.create_task(call(container, 600))
        await eventually(lambda: workshop.printed(container) == "go\ngo\n")
        ended = await container.stop()
        end = await running
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.CANCELLED
    assert (ended.code, ended.reason) == (0, "stopped")


async def test_giving_up_waiting_cancels_the_input(workshop: Workshop) -> None:
    container = await workshop.start("import time\ndef f(s):\n    time.sleep(s)\n    return 'next'")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await container.run(request_of(60))
    assert value(await call(container, 0)) == "next"
