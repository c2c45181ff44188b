"""`squall run` against a platform that stays: what is run, with what, and what is printed where."""

from __future__ import annotations

import os
import signal

import pytest
from tests.sdk.cli.shell import Shell
from tests.support.platform import eventually

pytestmark = pytest.mark.slow

PROGRAM = """\
import datetime
import os
import sys
import time
from typing import Literal, Optional

import squall

app = squall.App("run-tests")

@app.function()
def describe(n: int, when: Optional[datetime.datetime] = None, kind: Literal["a", "b"] = "a", loud: bool = False):
    print("got", n, when, kind, loud)
    return f"{n}!"

@app.function()
def fail(message: str):
    def inner():
        raise KeyError(message)
    inner()

@app.function()
def talk():
    sys.stdout.write("out 1\\n")
    sys.stderr.write("err 1\\n")
    for percent in (0, 50, 100):
        sys.stdout.write(f"\\r{percent} %")
        sys.stdout.flush()
        time.sleep(0.05)
    sys.stdout.write("\\nout 2\\n")

@app.function()
def hold(started: str, seconds: float = 60):
    open(started, "w").close()
    time.sleep(seconds)

@app.cls()
class Model:
    size: int = squall.parameter(default=1)

    @squall.method()
    def answer(self, x: int) -> None:
        print("answer", self.size * x)

@app.local_entrypoint()
def main(greeting: str = "hello", *, times: int = 1):
    print(f"{greeting} " * times)

@app.local_entrypoint()
def everything(*argv):
    print(argv)

@app.local_entrypoint()
async def asynchronous(n: int = 2):
    print(await describe.remote.aio(n))
    return "the result"

@app.local_entrypoint()
def failing():
    fail.remote("on purpose")

@app.local_entrypoint()
def held(started: str):
    hold.remote(started)

@app.local_entrypoint()
def runs_again():
    with app.run():
        pass
"""


@pytest.fixture(autouse=True)
def _program(served: Shell) -> None:
    served.write("app.py", PROGRAM)


def test_a_local_entrypoint_runs_here_with_typed_options(served: Shell) -> None:
    answer = served.squall("run", "app.py::main", "--greeting", "hi", "--times", "2").ok()

    assert answer.out == "hi hi \n"


def test_a_function_runs_remotely_and_its_output_comes_here(served: Shell) -> None:
    words = ("--n", "3", "--when", "2025-01-31", "--kind", "b", "--loud")

    answer = served.squall("run", "app.py::describe", *words).ok()

    assert answer.out == "got 3 2025-01-31 00:00:00 b True\n", "the output of the function, and not its result"


def test_a_method_takes_the_parameters_of_its_class_too(served: Shell) -> None:
    assert served.squall("run", "app.py::Model.answer", "--size", "3", "--x", "4").ok().out == "answer 12\n"


def test_a_class_with_one_method_needs_no_method_name(served: Shell) -> None:
    assert served.squall("run", "app.py::Model", "--x", "4").ok().out == "answer 4\n"


def test_the_apps_variable_may_stand_before_the_name(served: Shell) -> None:
    assert served.squall("run", "app.py::app.main").ok().out == "hello \n"


def test_an_entrypoint_with_a_star_parameter_gets_everything_as_text(served: Shell) -> None:
    assert served.squall("run", "app.py::everything", "-x", "--y=1", "z").ok().out == "('-x', '--y=1', 'z')\n"


def test_an_async_entrypoint_is_run_to_its_end(served: Shell) -> None:
    assert served.squall("run", "app.py::asynchronous", "--n", "5").ok().out.splitlines()[-1] == "5!"


def test_the_only_entrypoint_needs_no_name(served: Shell) -> None:
    served.write(
        "one.py", "import squall\napp = squall.App('one')\n@app.local_entrypoint()\ndef go():\n    print('went')\n"
    )

    assert served.squall("run", "one.py").ok().out == "went\n"


def test_a_module_is_run_with_m(served: Shell) -> None:
    served.write("package/__init__.py", "")
    served.write(
        "package/mod.py", "import squall\napp = squall.App('m')\n@app.function()\ndef f():\n    print(__name__)\n"
    )

    assert served.squall("run", "-m", "package.mod").ok().out == "package.mod\n"


def test_a_program_comes_from_standard_input(served: Shell) -> None:
    program = "import squall\napp = squall.App('i')\n@app.function()\ndef f():\n    print('from', __name__)\n"
    answer = served.python(
        f"""\
        import subprocess, sys
        done = subprocess.run(["{served.squall_path}", "run", "-"], input={program!r}, text=True, capture_output=True)
        sys.stdout.write(done.stdout), sys.stderr.write(done.stderr), sys.exit(done.returncode)
        """
    ).ok()

    assert answer.out == "from stdin\n"
    assert not [name for name in served.temporary_files() if "stdin" in name]


def test_the_name_of_the_file_need_not_be_a_python_name(served: Shell) -> None:
    served.write(
        "01-my app.py",
        "import squall\napp = squall.App('named')\nclass Mine(Exception): pass\n"
        "@app.function()\ndef f():\n    raise Mine('it is me')\n"
        "@app.local_entrypoint()\ndef go():\n    try:\n        f.remote()\n    except Mine as e:\n        print(e)\n",
    )

    assert served.squall("run", "01-my app.py").ok().out == "it is me\n"


def test_the_program_may_import_its_neighbours_and_the_current_folder(served: Shell) -> None:
    served.write("sub/neighbour.py", "NAME = 'neighbour'\n")
    served.write("around.py", "NAME = 'around'\n")
    served.write(
        "sub/app2.py",
        "import squall, neighbour, around\napp = squall.App('s')\n"
        "@app.local_entrypoint()\ndef go():\n    print(neighbour.NAME, around.NAME)\n",
    )

    assert served.squall("run", "sub/app2.py").ok().out == "neighbour around\n"


def test_the_result_can_be_written_to_a_file(served: Shell) -> None:
    served.squall("run", "-w", "result.txt", "app.py::describe", "--n", "3").ok()

    assert (served.work / "result.txt").read_text() == "3!"


def test_a_result_that_is_no_text_is_not_written(served: Shell) -> None:
    served.squall("run", "-w", "result.txt", "app.py::talk").refused("invalid", "NoneType")


def test_quiet_leaves_only_what_the_program_prints(served: Shell) -> None:
    answer = served.squall("run", "-q", "app.py::describe", "--n", "3").ok()

    assert (answer.out, answer.err) == ("got 3 None a False\n", "")


def test_steps_are_told_on_standard_error(served: Shell) -> None:
    answer = served.squall("run", "app.py::main").ok()

    assert "✓ Initialized app run-tests" in answer.err
    assert "✓ Created function describe." in answer.err
    assert "✓ App completed." in answer.err


def test_streams_stay_apart_and_carriage_returns_stay_in_them(served: Shell) -> None:
    answer = served.squall("run", "-q", "app.py::talk").ok()

    assert answer.out == "out 1\n\r0 %\r50 %\r100 %\nout 2\n"
    assert answer.err == "err 1\n"


def test_an_exception_in_a_container_shows_one_traceback_of_user_code(served: Shell) -> None:
    answer = served.squall("run", "app.py::failing")

    assert answer.status == 1
    shown = answer.err[answer.err.index("Traceback") :].splitlines()
    assert shown[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in shown if line.lstrip().startswith("File")] == [
        f'File "app.py", line {line_of("fail.remote(")}, in failing',
        f'File "/root/app.py", line {line_of("    inner()")}, in fail',
        f'File "/root/app.py", line {line_of("raise KeyError")}, in inner',
    ]
    assert shown[-1] == "KeyError: 'on purpose'"


def line_of(text: str) -> int:
    """Line of the first one in the program that has that text, `def inner()` apart."""
    return next(n for n, line in enumerate(PROGRAM.splitlines(), 1) if text in line and "def " not in line)


def test_the_full_traceback_is_there_for_who_wants_it(served: Shell) -> None:
    answer = served.squall("run", "app.py::failing", SQUALL_TRACEBACK="1")

    assert "squall/cli/run.py" in answer.err
    assert "/root/app.py" in answer.err


def test_running_the_app_inside_its_entrypoint_is_refused(served: Shell) -> None:
    served.squall("run", "app.py::runs_again").refused("invalid", "already running")


def test_a_detached_call_outlives_the_command(served: Shell) -> None:
    started = served.work / "detached"

    call = served.squall("run", "--detach", "app.py::hold", "--started", started, "--seconds", "1").ok().out.strip()

    get = f"import squall; print(squall.FunctionCall.from_id({call!r}).get(timeout=30))"
    assert served.python(get).ok().out == "None\n"
    assert started.exists()


@pytest.mark.parametrize(("which", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_app_and_the_command(served: Shell, which: signal.Signals, status: int) -> None:
    started = served.work / f"held-{status}"
    child = served.start("run", "app.py::held", "--started", started)
    eventually(started.exists, within_s=30)

    os.killpg(child.pid, which)
    answer = served.finish(child)

    assert answer.status == status
    assert "App aborted." in answer.err
    assert "Traceback" not in answer.err
    assert "ephemeral" not in served.squall("app", "list").ok().out


def test_a_terminal_shows_progress_and_is_clean_afterwards(served: Shell) -> None:
    served.write(
        "mapped.py",
        """\
        import time
        import squall

        app = squall.App("mapped")

        @app.function()
        def nap(n: int) -> int:
            time.sleep(0.2)
            return n

        @app.local_entrypoint()
        def main():
            print("sum", sum(nap.map(range(60))))
        """,
    )

    terminal = served.on_terminal("run", "mapped.py")
    assert terminal.end() == 0

    assert "Initialized app" in terminal.raw
    assert "/60" in terminal.raw, "no bar"
    assert "━" in terminal.raw, "no bar"
    assert "nap: 60 of 60 inputs" in terminal.raw
    assert "sum 1770" in terminal.raw
    assert terminal.raw.rstrip().endswith("\x1b[?25h"), "the cursor stays hidden"


def test_the_reason_why_a_call_waits_is_shown_while_it_waits(served: Shell) -> None:
    served.write("waits.py", "import squall\napp = squall.App('w')\n@app.function(gpu='H100')\ndef f(): ...\n")

    terminal = served.on_terminal("run", "waits.py")
    terminal.until("H100", timeout_s=30)
    terminal.interrupt()

    assert terminal.end() == 130


def test_the_reason_why_a_call_waits_is_a_line_where_nothing_can_be_drawn(served: Shell) -> None:
    served.write("waits.py", "import squall\napp = squall.App('w')\n@app.function(gpu='H100')\ndef f(): ...\n")
    child = served.start("run", "waits.py")
    assert child.stderr is not None

    lines = []
    while not lines or "H100" not in lines[-1]:
        lines.append(child.stderr.readline().decode())
        assert lines[-1], lines
    os.killpg(child.pid, signal.SIGINT)

    assert served.finish(child).status == 130
    assert "waits: " in lines[-1]
