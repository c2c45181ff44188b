"""Programs and command lines that `squall run` refuses before anything runs: code, cause, fix, status, nothing left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.sdk.cli.shell import Shell

PROGRAM = """\
import squall

app = squall.App("refusals")

@app.function()
def square(x: int) -> int:
    return x * x

@app.function()
def cube(x: int) -> int:
    return x * x * x
"""
MODEL = """\
import squall

app = squall.App("refusals")

@app.cls()
class Model:
    size: int = squall.parameter(default=1)

    @squall.method()
    def one(self, x: int) -> int:
        return x

    @squall.method()
    def two(self, size: int) -> int:
        return size
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def user(shell: Shell) -> Iterator[Shell]:
    """After each refusal nothing may be left of the platform that was being started meanwhile."""
    yield shell
    shell.nothing_left()


def test_a_missing_file_names_the_one_that_was_probably_meant(user: Shell) -> None:
    user.write("present.py", PROGRAM)

    user.squall("run", "presnt.py").refused("program", "no file presnt.py", "Did you mean present.py?")


def test_a_folder_is_not_a_program(user: Shell) -> None:
    user.write("folder.py/x", "")

    user.squall("run", "folder.py").refused("program", "is a folder")


def test_a_syntax_error_is_shown_with_file_line_and_caret(user: Shell) -> None:
    user.write("broken.py", "import squall\n\ndef f(:\n    pass\n")

    answer = user.squall("run", "broken.py").refused("program", "broken.py:3: ", "    def f(:")

    line, caret = answer.err.splitlines()[1:3]
    assert line[caret.index("^")] == ":"


def test_a_syntax_error_in_a_module_of_the_program_names_that_module(user: Shell) -> None:
    user.write("app.py", "import helper\n")
    user.write("helper.py", "x = = 1\n")

    user.squall("run", "app.py").refused("program", "helper.py:1: ")


def test_an_import_error_shows_the_users_line_and_how_to_do_without(user: Shell) -> None:
    user.write("app.py", "import squall\nimport surely_missing\n")

    answer = user.squall("run", "app.py").refused("program", "No module named 'surely_missing'", "image.imports()")

    assert 'File "app.py", line 2' in answer.err
    assert "importlib" not in answer.err


def test_an_exception_at_import_shows_its_traceback(user: Shell) -> None:
    user.write("app.py", "def f():\n    return 1 / 0\n\nf()\n")

    answer = user.squall("run", "app.py").refused("program", "app.py raised ZeroDivisionError")

    assert 'File "app.py", line 2, in f' in answer.err


def test_a_wrong_declaration_names_file_and_line(user: Shell) -> None:
    user.write("app.py", PROGRAM + "\n@app.function(min_containers=3, max_containers=2)\ndef f(): ...\n")

    user.squall("run", "app.py").refused("invalid", "app.py:13: ", "max_containers", "min_containers (3), got 2")


def test_a_program_without_an_app_says_so(user: Shell) -> None:
    user.write("app.py", "x = 1\n")

    user.squall("run", "app.py").refused("program", "it has no app", "@app.function()")


def test_several_functions_are_listed(user: Shell) -> None:
    user.write("app.py", PROGRAM)

    answer = user.squall("run", "app.py").refused("usage", "app.py::square", status=2)

    assert "    square " in answer.err
    assert "    cube " in answer.err


def test_an_unknown_name_lists_what_there_is(user: Shell) -> None:
    user.write("app.py", PROGRAM)

    user.squall("run", "app.py::sqare").refused("program", "has no 'sqare'", "Did you mean square?")


def test_a_name_that_is_not_a_function_of_an_app_says_so(user: Shell) -> None:
    user.write("app.py", PROGRAM + "\ndef plain(): ...\n")

    user.squall("run", "app.py::plain").refused("program", "'plain' of app.py is not a function of an app")


def test_a_class_with_several_methods_lists_them(user: Shell) -> None:
    user.write("app.py", MODEL)

    user.squall("run", "app.py::Model").refused("usage", "Model.one", "Model.two", status=2)


def test_a_parameter_that_class_and_method_share_is_told(user: Shell) -> None:
    user.write("app.py", MODEL)

    user.squall("run", "app.py::Model.two", "--size", "1").refused("invalid", "'size' is a parameter of both")


def test_a_missing_option_is_a_usage_error(user: Shell) -> None:
    user.write("app.py", PROGRAM)

    user.squall("run", "app.py::square").refused("usage", "--x is missing", "--x INTEGER", status=2)


def test_a_generator_cannot_be_run_by_itself(user: Shell) -> None:
    user.write("app.py", "import squall\napp = squall.App('a')\n@app.function()\ndef g():\n    yield 1\n")

    user.squall("run", "app.py").refused("invalid", "g is a generator", "remote_gen")


def test_a_file_named_like_a_module_of_python_is_refused(user: Shell) -> None:
    user.write("json.py", PROGRAM)

    user.squall("run", "json.py").refused("program", "the standard library", "json_app.py")


@pytest.mark.parametrize(
    ("reference", "fix"),
    [("app.py:square", "app.py::square"), ("app", "app.py"), ("my.app.py", "my_app.py"), ("pkg.mod", "-m pkg.mod")],
)
def test_a_wrong_reference_is_a_usage_error(user: Shell, reference: str, fix: str) -> None:
    user.squall("run", reference).refused("usage", fix, status=2)


def test_a_missing_program_is_a_usage_error(user: Shell) -> None:
    user.squall("run").refused("usage", "the program is missing", status=2)


def test_an_unknown_option_of_squall_is_a_usage_error(user: Shell) -> None:
    user.squall("run", "--detatch", "app.py").refused("usage", "--detatch", status=2)


def test_a_detached_run_needs_a_platform_that_stays(user: Shell) -> None:
    user.write("app.py", PROGRAM)

    user.squall("run", "--detach", "app.py::square", "--x", "1").refused("conflict", "squall up")


def test_a_deployment_needs_a_platform_that_stays(user: Shell) -> None:
    user.write("app.py", PROGRAM)

    user.squall("deploy", "app.py").refused("conflict", "squall up")


def test_a_command_that_asks_a_server_says_when_there_is_none(user: Shell) -> None:
    user.squall("app", "list").refused("connection", "no server is configured", "squall up")


def test_help_of_a_function_names_its_options(user: Shell) -> None:
    user.write("app.py", PROGRAM)

    answer = user.squall("run", "app.py::square", "--help").ok()

    assert "squall run app.py::square" in answer.out
    assert "--x INTEGER" in answer.out
    assert "required" in answer.out


def test_exit_inside_the_program_is_the_exit_status(user: Shell) -> None:
    user.write("app.py", "raise SystemExit(7)\n")

    assert user.squall("run", "app.py").status == 7
