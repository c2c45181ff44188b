"""What a container prints: text intact, tagged with its input, before the result."""

from __future__ import annotations

import asyncio

import pytest
from tests.sdk.runner.containers import Workshop, call, value
from tests.support.eventually import eventually

pytestmark = pytest.mark.slow


async def test_prints_are_tagged_with_their_call_and_come_before_its_result(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import sys
        print('import')
        def f(x):
            print('out', x)
            print('err', x, file=sys.stderr)
            return x
        """
    )
    for number in range(20):
        await call(container, number, call=f"fc-{number}")
        assert f"out {number}\n" in workshop.printed(container)
        assert f"err {number}\n" in workshop.printed(container, "stderr")
    tags = {(log.text, log.call) for log in workshop.logs}
    assert ("import\n", None) in tags
    assert ("out 7\n", "fc-7") in tags
    assert ("err 7\n", "fc-7") in tags


async def test_carriage_returns_and_partial_lines_arrive_as_they_were_flushed(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import sys
        def f():
            for i in range(3):
                sys.stdout.write(f"\\r{i} %")
                sys.stdout.flush()
        """
    )
    await call(container)
    assert [log.text for log in workshop.logs if log.stream == "stdout"] == ["\r0 %", "\r1 %", "\r2 %"]


async def test_a_partial_line_without_flush_is_sent_while_the_input_runs(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import os, time
        def f(path):
            print('waiting ...', end='')
            while not os.path.exists(path): time.sleep(0.01)
        """
    )
    path = workshop.folder / "go"
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(call(container, str(path)))
        await eventually(lambda: workshop.printed(container) == "waiting ...")
        path.touch()
        await running


async def test_a_partial_line_at_the_end_comes_before_the_result(workshop: Workshop) -> None:
    container = await workshop.start("def f(): print('no newline', end='')")
    await call(container)
    assert workshop.printed(container) == "no newline"


async def test_writes_below_python_come_before_the_result_and_have_the_only_running_call(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import os, subprocess
        def f():
            os.write(1, b'raw\\n')
            subprocess.run(['sh', '-c', 'echo child; echo bad >&2'])
        """
    )
    await call(container, call="fc-raw")
    assert workshop.printed(container) == "raw\nchild\n"
    assert workshop.printed(container, "stderr") == "bad\n"
    assert {log.call for log in workshop.logs if log.container == container.id} == {"fc-raw"}


async def test_buffered_writes_of_c_code_come_before_the_result(workshop: Workshop) -> None:
    container = await workshop.start("import ctypes\nlibc = ctypes.CDLL(None)\ndef f(): libc.puts(b'from C')")
    await call(container)
    assert workshop.printed(container) == "from C\n"


async def test_parallel_inputs_have_their_own_tags(workshop: Workshop) -> None:
    container = await workshop.start(
        "import threading\nall_in = threading.Barrier(4)\ndef f(x):\n    all_in.wait(10)\n    print('mine', x)",
        max_inputs=4,
    )
    await asyncio.gather(*(call(container, x, call=f"fc-{x}") for x in range(4)))
    for x in range(4):
        assert "".join(log.text for log in workshop.logs if log.call == f"fc-{x}") == f"mine {x}\n"


async def test_bytes_written_to_the_buffer_of_stdout_are_text(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import sys
        def f():
            raw = 'grün\\n'.encode()
            sys.stdout.buffer.write(raw[:3])
            sys.stdout.buffer.write(raw[3:])
        """
    )
    await call(container)
    assert workshop.printed(container) == "grün\n"


async def test_logging_configured_at_import_goes_to_stderr(workshop: Workshop) -> None:
    container = await workshop.start(
        "import logging\nlogging.basicConfig(level='INFO')\ndef f(): logging.getLogger('me').info('hello')"
    )
    await call(container)
    assert workshop.printed(container, "stderr") == "INFO:me:hello\n"


async def test_children_that_user_code_forks_print_too_and_do_not_break_the_container(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import multiprocessing, sys
        context = multiprocessing.get_context("fork")
        def child(n):
            print("child", n)
            return n * n
        def f():
            with context.Pool(2) as pool:
                return pool.map(child, range(4))
        """
    )
    assert value(await call(container)) == [0, 1, 4, 9]
    await eventually(
        lambda: (
            sorted(workshop.printed(container).split())
            == sorted(["child", "0", "child", "1", "child", "2", "child", "3"])
        )
    )
    assert value(await call(container)) == [0, 1, 4, 9]


async def test_a_child_that_comes_back_from_user_code_ends_and_the_container_goes_on(workshop: Workshop) -> None:
    container = await workshop.start(
        """
        import os
        def f():
            child = os.fork()
            if child == 0:
                return "from the child"
            os.waitpid(child, 0)
            return "from the parent"
        """
    )
    assert value(await call(container)) == "from the parent"
    assert value(await call(container)) == "from the parent"


async def test_much_output_is_complete(workshop: Workshop) -> None:
    container = await workshop.start(
        "def f():\n    for i in range(5000): print('line', i)\n    print('x' * 20_000_000)"
    )
    await call(container)
    text = workshop.printed(container)
    assert text.count("\n") == 5001
    assert text.count("x") == 20_000_000
