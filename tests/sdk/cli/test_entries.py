"""Which function of a program is meant by what follows `::`, and what a failing command shows."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import pytest

import squall
from squall.cli import commands, entries, failure, options
from squall.cli.program import UserCodeFailed
from squall.cli.reference import parse
from squall.errors import InvalidError, UsageError

PROGRAM = """
import squall

shop = squall.App()
other = squall.App()

@shop.function()
def price(item: str): ...

@shop.function()
@squall.fastapi_endpoint()
def page(): ...

@other.cls()
class Stock:
    @squall.method()
    def count(self): ...

    @squall.asgi_app()
    def web(self): ...
"""


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("price", "price"),
        ("shop.price", "price"),
        ("shop", "price"),
        ("Stock", "Stock.count"),
        ("other.Stock.count", "Stock.count"),
        ("other", "Stock.count"),
    ],
)
def test_a_function_is_found_by_itself_by_its_app_and_by_its_class(module: ModuleType, target: str, name: str) -> None:
    assert entries.choose(module, parse(f"program.py::{target}")).name == name


def test_web_functions_are_not_run(module: ModuleType) -> None:
    with pytest.raises(UsageError) as several:
        entries.choose(module, parse("program.py"))
    assert "page" not in several.value.message
    del module.Stock, module.other
    assert entries.choose(module, parse("program.py")).name == "price"
    for target in ("page", "shop.page"):
        with pytest.raises(InvalidError, match="page is a web function") as refused:
            entries.choose(module, parse(f"program.py::{target}"))
        assert "squall serve program.py" in refused.value.hint


def _page() -> None: ...


def test_a_program_that_has_web_functions_alone_is_to_be_served() -> None:
    module = ModuleType("program")
    app = squall.App()
    page = squall.fastapi_endpoint()(_page)
    module.first, module.second = (app.function(name=name)(page) for name in ("a", "b"))

    with pytest.raises(InvalidError, match="first is a web function") as refused:
        entries.choose(module, parse("program.py"))

    assert "squall serve program.py" in refused.value.hint


def test_a_class_with_other_options_is_run_when_it_is_named_and_never_by_itself(module: ModuleType) -> None:
    module.Large = module.Stock.with_options(timeout=5)

    assert entries.choose(module, parse("program.py::Large.count")).target is module.Large
    assert entries.choose(module, parse("program.py::Large")).target is module.Large
    assert entries.choose(module, parse("program.py::Stock.count")).target is module.Stock
    del module.price, module.page, module.shop
    assert entries.choose(module, parse("program.py")).target is module.Stock


class Listener:
    @squall.enter()
    def start(self) -> None: ...


def test_a_server_has_no_method_to_name(module: ModuleType) -> None:
    module.Web = module.other.server()(Listener)
    with pytest.raises(InvalidError, match=r"^Web is a web function"):
        entries.choose(module, parse("program.py::Web"))


def test_an_annotation_that_is_no_expression_is_refused() -> None:
    def f(x: "no go") -> None: ...  # type: ignore  # noqa

    with pytest.raises(InvalidError, match="cannot be read"):
        options.of_callable(f)


def test_a_command_keeps_the_cause_of_what_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object, **_kwargs: object) -> None:
        raise UserCodeFailed("importing x") from ZeroDivisionError("in user code")

    monkeypatch.setattr(commands, "app", fails)
    with pytest.raises(UserCodeFailed) as failed:
        commands.dispatch(["deploy", "x.py"])
    assert isinstance(failed.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("words", "heir"),
    [
        (["shell", "app.py"], "squall container exec"),
        (["token", "new"], "squall up"),
        (["setup"], "squall up"),
        (["sandbox", "list"], "subprocess"),
        (["app", "rollover", "x"], "--strategy recreate"),
        (["container", "logs", "co-1"], "--container"),
        (["curl", "https://x"], "proxy create"),
        (["volume", "dashboard", "x"], "volume ls"),
    ],
)
def test_a_command_of_other_platforms_names_what_to_do_instead(words: list[str], heir: str) -> None:
    with pytest.raises(UsageError, match="there is no `squall") as refused:
        commands.dispatch(words)
    assert heir in refused.value.hint


def test_a_file_of_a_package_is_to_be_run_as_a_module() -> None:
    out = io.StringIO()
    cause = ImportError("attempted relative import with no known parent package")
    error = UserCodeFailed("importing shop/main.py")
    error.__cause__ = cause
    assert failure.report(error, out) == failure.EXIT_FAILED
    assert "`-m package.module`" in out.getvalue()


def test_the_place_of_a_refusal_is_a_line_of_a_file() -> None:
    def declare() -> None:
        squall.CloudBucketMount("b")  # refused in an __init__ that the standard library has made

    with pytest.raises(InvalidError) as refused:
        declare()
    out = io.StringIO()
    error = UserCodeFailed("importing x.py")
    error.__cause__ = refused.value
    assert failure.report(error, out) == failure.EXIT_FAILED
    assert "test_entries.py:" in out.getvalue()
    assert "<string>" not in out.getvalue()


def test_what_a_container_raised_is_never_called_a_bug_of_squall() -> None:
    class RemoteTraceback(Exception):
        """As the SDK makes it."""

    out = io.StringIO()
    error = ModuleNotFoundError("No module named 'pandas'", name="pandas")
    error.__cause__ = RemoteTraceback("Traceback (most recent call last):\n  File x\nModuleNotFoundError: pandas")
    assert failure.report(error, out) == failure.EXIT_FAILED
    assert "In the container" in out.getvalue()
    assert 'uv_pip_install("pandas")' in out.getvalue()
    assert squall.errors.SquallError.fix not in out.getvalue()
