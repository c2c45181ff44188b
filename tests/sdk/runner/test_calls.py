"""What a container does with an input: results, generators, encodings, failures."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from tests.sdk.runner.containers import Workshop, call, read_and_remove, request_of, value
from tests.support.eventually import eventually

from squall.spec import Encoding, ImageSpec, ImageStep
from squall_gpu_agent.backend import Failed, FailureKind, InputRequest, Item, Lost, NotBegun, Output

pytestmark = pytest.mark.slow


async def test_a_sync_function_returns_its_value(workshop: Workshop) -> None:
    container = await workshop.start("def f(x, y=1): return x * y")
    assert value(await call(container, 6, y=7)) == 42


async def test_an_async_function_returns_its_value(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import asyncio
        async def f(x):
            await asyncio.sleep(0)
            return x + 1
        """
    )
    assert value(await call(container, 1)) == 2
    assert value(await call(container, 2)) == 3


async def test_single_slot_sync_code_runs_in_the_main_thread(workshop: Workshop) -> None:
    container = await workshop.start("import threading\ndef f(): return threading.current_thread().name")
    assert value(await call(container)) == "MainThread"


async def test_sync_inputs_run_in_parallel_in_threads_when_the_container_has_slots(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import threading
        together = threading.Barrier(4)
        def f(x):
            together.wait(10)
            return x, threading.current_thread() is threading.main_thread()
        """,
        max_inputs=4,
    )
    ends = await asyncio.gather(*(call(container, x) for x in range(4)))
    assert [value(end) for end in ends] == [(x, False) for x in range(4)]


async def test_async_inputs_share_one_loop_in_the_main_thread(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import asyncio, threading
        waiting = []
        async def f(x):
            waiting.append(x)
            while len(waiting) < 10:
                await asyncio.sleep(0.001)
            return id(asyncio.get_running_loop()), threading.current_thread() is threading.main_thread()
        """,
        max_inputs=10,
    )
    values = [value(end) for end in await asyncio.gather(*(call(container, x) for x in range(10)))]
    assert len(set(values)) == 1
    assert values[0][1] is True


async def test_a_generator_streams_its_items_in_order_before_its_end(workshop: Workshop) -> None:
    container = await workshop.start("def f(n):\n    yield from range(n)")
    items: list[Item] = []
    end = await call(container, 5, on_item=items.append)
    assert [value(item) for item in items] == [0, 1, 2, 3, 4]
    assert [item.seq for item in items] == [0, 1, 2, 3, 4]
    assert isinstance(end, Output)
    assert end.items == 5
    assert value(end) is None


async def test_an_async_generator_streams_its_items(workshop: Workshop) -> None:
    container = await workshop.start("async def f(n):\n    for i in range(n): yield i * i")
    items: list[Any] = []
    await call(container, 4, on_item=lambda item: items.append(value(item)))
    assert items == [0, 1, 4, 9]


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_a_generator_waits_for_credit_beyond_its_window(workshop: Workshop, kind: str) -> None:
    container = await workshop.start(
        f"{kind} f(n):\n    for i in range(n):\n        print(i, flush=True)\n        yield i"
    )
    items: list[Item] = []
    request = request_of(400)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(container.run(request, items.append))
        await eventually(lambda: len(items) >= 256 and "256\n" in workshop.printed(container))
        assert len(items) == 256
        assert not workshop.printed(container).endswith("257\n")
        container.credit(request.call, 0, 1000)
        await running
    assert [value(item) for item in items] == list(range(400))


async def test_an_exception_is_type_message_user_frames_and_pickle(workshop: Workshop) -> None:
    container = await workshop.start("def g(x): raise ValueError(f'bad {x}')\ndef f(x): return g(x)")
    end = await call(container, 3)
    assert isinstance(end, Failed)
    assert (end.kind, end.type_name, end.module, end.message) == (FailureKind.USER, "ValueError", "builtins", "bad 3")
    assert "squall_runner" not in end.traceback
    assert 'File "/root/app.py", line 1, in g' in end.traceback
    assert end.pickled is not None
    original = pickle.loads(end.pickled)
    assert isinstance(original, ValueError)
    assert original.args == ("bad 3",)


async def test_the_cause_of_an_exception_survives_pickling(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        def f():
            try:
                {}['missing']
            except KeyError as error:
                raise RuntimeError('outer') from error
        """
    )
    end = await call(container)
    assert isinstance(end, Failed)
    assert end.pickled is not None
    original = pickle.loads(end.pickled)
    assert isinstance(original.__cause__, KeyError)
    assert "direct cause" in end.traceback


async def test_an_exception_whose_init_takes_other_arguments_keeps_its_text_and_attributes(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__('text')
                self.a = a
        def f(): raise Odd(1, 2)
        """
    )
    end = await call(container)
    assert isinstance(end, Failed)
    assert end.pickled is not None
    assert b"Odd" in end.pickled
    assert b"text" in end.pickled


async def test_an_exception_that_cannot_be_loaded_again_comes_without_pickle(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        class Odd(Exception):
            def __reduce__(self): return (int, ('not a number',))
        def f(): raise Odd()
        """
    )
    end = await call(container)
    assert isinstance(end, Failed)
    assert (end.type_name, end.module, end.pickled) == ("Odd", "app", None)


@pytest.mark.parametrize("what", ["SystemExit(3)", "KeyboardInterrupt()", "GeneratorExit()"])
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_base_exceptions_are_failures_and_the_container_lives_on(
    workshop: Workshop, kind: str, what: str
) -> None:
    container = await workshop.start(f"{kind} f(bad):\n    if bad: raise {what}\n    return 'alive'")
    end = await call(container, True)
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.USER
    assert end.type_name == what.split("(")[0]
    assert value(await call(container, False)) == "alive"


async def test_exit_called_in_user_code_is_a_failure(workshop: Workshop) -> None:
    container = await workshop.start("def f(): exit(2)")
    end = await call(container)
    assert isinstance(end, Failed)
    assert end.type_name == "SystemExit"


async def test_a_result_that_cannot_be_sent_says_what_it_is(workshop: Workshop) -> None:
    container = await workshop.start("import threading\ndef f(): return threading.Lock()")
    end = await call(container)
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.SERIALIZATION
    assert "what f returned" in end.message
    assert "lock" in end.message


async def test_a_lambda_is_returned_by_cloudpickle(workshop: Workshop) -> None:
    container = await workshop.start("def f(n): return lambda x: x + n")
    assert value(await call(container, 2))(40) == 42


async def test_arguments_that_cannot_be_loaded_name_the_module(workshop: Workshop) -> None:
    container = await workshop.start("def f(x): return x")
    request = request_of()
    broken = type(request)(call="fc-x", payload=b"cnot_installed_here\nthing\n.")
    end = await container.run(broken)
    assert isinstance(end, Failed)
    assert end.kind is FailureKind.DESERIALIZATION
    assert "not_installed_here" in end.message


async def test_json_in_json_out(workshop: Workshop) -> None:
    container = await workshop.start("def f(a, b): return {'sum': a + b}")
    end = await call(container, 1, b=2, encoding="json")
    assert isinstance(end, Output)
    assert end.payload == b'{"sum":3}'


async def test_msgpack_in_msgpack_out_with_the_platforms_pure_python_copy(workshop: Workshop) -> None:
    import msgpack

    container = await workshop.start("def f(a, b): return [a, b, b'raw']")
    payload = msgpack.packb({"args": [1], "kwargs": {"b": "x"}})
    end = await container.run(InputRequest(call="fc-m", encoding=Encoding.MSGPACK, payload=payload))
    assert isinstance(end, Output)
    assert msgpack.unpackb(end.payload) == [1, "x", b"raw"]


async def test_a_large_result_is_a_file_that_belongs_to_the_caller(workshop: Workshop) -> None:
    container = await workshop.start("def f(n): return b'x' * n")
    end = await call(container, 3_000_000)
    assert isinstance(end, Output)
    assert end.payload is None
    assert end.size > 3_000_000
    await container.stop()
    assert pickle.loads(read_and_remove(end.path)) == b"x" * 3_000_000


async def test_a_result_beyond_the_largest_frame_is_sent(workshop: Workshop) -> None:
    container = await workshop.start("def f(n): return b'x' * n")
    assert len(value(await call(container, 30_000_000))) == 30_000_000


async def test_arguments_may_come_as_a_file(workshop: Workshop) -> None:
    container = await workshop.start("def f(data): return len(data)")
    path = workshop.folder / "arguments"
    path.write_bytes(pickle.dumps(((b"x" * 500_000,), {})))
    request = request_of()
    end = await container.run(type(request)(call="fc-file", path=path))
    assert value(end) == 500_000


async def test_a_script_class_pickled_by_the_caller_as_main_resolves(workshop: Workshop) -> None:
    container = await workshop.start("class Point:\n    x = 5\ndef f(p): return type(p).__module__, p.x")
    request = request_of()
    # ((Point(),), {}) with Point as __main__.Point
    by_reference = b"\x80\x04" + b"c__main__\nPoint\n" + b")\x81" + b"\x85" + b"}" + b"\x86."
    end = await container.run(type(request)(call="fc-main", payload=by_reference))
    assert value(end) == ("app", 5)


async def test_user_code_knows_its_call_and_that_it_is_remote(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import threading
        import squall
        from squall_runner import context
        def f():
            seen = []
            thread = threading.Thread(target=lambda: seen.append(context.current_function_call_id()))
            thread.start(); thread.join()
            return context.current_function_call_id(), context.current_input_id(), context.is_local(), seen
        """
    )
    assert value(await call(container, call="fc-me")) == ("fc-me", "fc-me:0", False, ["fc-me"])


async def test_user_code_is_told_the_trace_that_it_belongs_to(workshop: Workshop) -> None:
    container = await workshop.start("import os\ndef f(): return os.environ.get('TRACEPARENT')")
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = request_of()
    end = await container.run(type(request)(call="fc-t", payload=request.payload, traceparent=parent))
    assert value(end) == parent
    assert value(await call(container)) is None


async def test_os_exit_loses_the_input_and_tells_the_code(workshop: Workshop) -> None:
    container = await workshop.start("import os\ndef f(): os._exit(7)")
    end = await call(container)
    assert isinstance(end, Lost)
    assert (end.exit.code, end.exit.reason) == (7, "exited with code 7")


async def test_a_segfault_loses_the_input_and_leaves_the_python_stack_in_the_log(workshop: Workshop) -> None:
    container = await workshop.start("import ctypes\ndef f(): ctypes.string_at(0)")
    end = await call(container)
    assert isinstance(end, Lost)
    assert end.exit.reason == "killed by SIGSEGV"
    assert "in f" in workshop.printed(container, "stderr")


async def test_a_result_sent_just_before_the_process_ends_is_not_lost(workshop: Workshop) -> None:
    container = await workshop.start(
        "import os, threading, time\ndef f():\n    threading.Timer(0.02, os._exit, (3,)).start()\n    return 'made it'"
    )
    assert value(await call(container)) == "made it"
    assert (await container.wait()).code == 3
    assert isinstance(await call(container), NotBegun)


async def test_a_method_that_does_not_exist_is_a_failure(workshop: Workshop) -> None:
    container = await workshop.start("def f(): return 1")
    end = await call(container, method="nope")
    assert isinstance(end, Failed)
    assert "nope" in end.message


async def test_processes_that_user_code_spawns_can_import_its_module(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import multiprocessing, subprocess, sys
        def square(x): return x * x
        def f():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                squares = pool.map(square, range(3))
            printed = subprocess.check_output([sys.executable, "-c", "import app, squall; print(app.square(4))"])
            return squares, int(printed)
        """
    )
    assert value(await call(container)) == ([0, 1, 4], 16)


async def test_spans_of_user_code_are_children_of_the_attempt(workshop: Workshop) -> None:
    image = ImageSpec("3.11", (ImageStep("pip_install", {"packages": ["opentelemetry-api"]}),))
    container = await workshop.start(
        """
        from opentelemetry import trace
        def f():
            context = trace.get_current_span().get_span_context()
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
        """,
        image=image,
    )
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    end = await container.run(InputRequest(call="fc-o", payload=request_of().payload, traceparent=parent))
    assert value(end) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert value(await call(container))[0] == "0" * 32
