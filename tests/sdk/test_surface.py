"""The public names: that they are all there, what the missing ones say, and what `import squall` costs."""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import squall
from squall import exception, publish
from squall.ids import check_name
from squall.unimplemented import Missing

SRC = Path(__file__).resolve().parents[2] / "sdk" / "src"

BUILT = [
    "asgi_app",
    "fastapi_endpoint",
    "web_endpoint",
    "web_server",
    "wsgi_app",
    "App",
    "CloudBucketMount",
    "Cls",
    "Cron",
    "Error",
    "FilePatternMatcher",
    "Function",
    "FunctionCall",
    "Image",
    "Dict",
    "Environment",
    "Period",
    "Queue",
    "NetworkFileSystem",
    "Retries",
    "Secret",
    "Volume",
    "batched",
    "concurrent",
    "current_function_call_id",
    "current_input_id",
    "enable_output",
    "enter",
    "exit",
    "is_local",
    "method",
    "parameter",
    "exception",
    "experimental",
    "functions",
    "gpu",
    "__version__",
]
NOT_BUILT = [
    "Client",
    "Cluster",
    "Probe",
    "Proxy",
    "Sandbox",
    "SandboxSnapshot",
    "SchedulerPlacement",
    "Tunnel",
    "Workspace",
    "clustered",
    "forward",
    "interact",
    "sessioned",
]
ERRORS = [
    "AlreadyExistsError",
    "AsyncUsageWarning",
    "AuthError",
    "ClientClosed",
    "ConflictError",
    "ConnectionError",
    "DataLossError",
    "DeprecationError",
    "DeserializationError",
    "DiskFullError",
    "Error",
    "ExecutionError",
    "FunctionTimeoutError",
    "ImageBuildError",
    "InputCancellation",
    "InternalError",
    "InternalFailure",
    "InvalidError",
    "ModuleNotMountable",
    "NotFoundError",
    "OutOfMemoryError",
    "OutputExpiredError",
    "PermissionDeniedError",
    "RemoteError",
    "RequestSizeError",
    "ResourceExhaustedError",
    "SerializationError",
    "ServiceError",
    "TimeoutError",
    "UnimplementedError",
    "VersionError",
]


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_is_there(name: str) -> None:
    assert getattr(squall, name) is not None
    assert name in dir(squall)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_exists_and_says_what_to_use_instead(name: str) -> None:
    value = getattr(squall, name)
    for use in (value, lambda: value.from_name("x"), lambda: value("x")):
        with pytest.raises(exception.UnimplementedError, match=name) as caught:
            use()
        assert caught.value.hint


@pytest.mark.parametrize(
    "use",
    [
        lambda: squall.App().run(interactive=True),
        lambda: squall.App().run(client=object()),
    ],
)
def test_methods_that_are_not_built_say_so(use: Any) -> None:
    with pytest.raises((exception.UnimplementedError, exception.UnimplementedArgument)) as caught:
        use()
    assert caught.value.hint


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_can_be_caught_by_its_name(name: str) -> None:
    assert issubclass(getattr(exception, name), BaseException)


OLD_USES: dict[str, Callable[[], Any]] = {
    "Volume.from_name": squall.SharedVolume,
    "squall.enter": lambda: squall.build()(print),
    "add_local_python_source": lambda: squall.create_package_mounts(["a"]),
    "squall.Volume.from_name": squall.Volume.new,  # type: ignore[attr-defined]
    "squall.Queue.ephemeral": squall.Queue.new,  # type: ignore[attr-defined]
    "squall.Dict.from_name": lambda: squall.Dict.new({}),  # type: ignore[attr-defined]
    "Secret.from_dict": lambda: squall.Secret.new({}),  # type: ignore[attr-defined]
    "pip_install": squall.Image.conda,  # type: ignore[attr-defined]
    "from_registry": lambda: squall.Image.from_dockerhub("a"),  # type: ignore[attr-defined]
    "fastapi_endpoint": lambda: squall.App().webhook(print),  # type: ignore[attr-defined]
    "spawn": squall.Function.from_name("a", "b").submit,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("new", OLD_USES)
def test_the_use_of_an_old_name_says_the_new_one(new: str) -> None:
    with pytest.raises(exception.UnimplementedError, match="an old name") as caught:
        OLD_USES[new]()
    assert new in str(caught.value.hint)


def test_an_old_name_can_be_imported_so_that_its_use_says_the_new_one() -> None:
    from squall import build

    with pytest.raises(exception.UnimplementedError, match=r"squall\.build"):
        build()


def test_the_import_of_an_old_name_that_works_warns_at_the_line_of_the_import(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from squall import Stub\n")
    ran = subprocess.run(
        [sys.executable, str(program)],
        env={"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "program.py:1: DeprecationWarning: squall.Stub is called squall.App now" in ran.stderr


@pytest.mark.parametrize("kind", [squall.Volume, squall.Dict, squall.Queue])
def test_persisted_is_from_name_with_a_warning(kind: Any) -> None:
    with pytest.warns(DeprecationWarning, match="from_name"):
        handle = kind.persisted("old")
    assert handle.name == "old"
    assert handle._create


def test_a_lookup_of_a_secret_is_from_name_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="from_name"):
        assert squall.Secret.lookup("old").name == "old"


def test_an_app_may_have_any_name_until_it_is_deployed() -> None:
    app = squall.App("my team/the app")
    assert publish.ephemeral_name(app, app.name) == "my-team-the-app"
    with pytest.raises(exception.InvalidError, match="my team/the app"):
        app.deploy()


def on_an_image() -> None: ...


class OnAnImage:
    @squall.method()
    def run(self) -> None: ...


def test_what_is_included_keeps_the_image_of_the_app_that_declared_it() -> None:
    image = squall.Image.debian_slim().pip_install("numpy")
    other = squall.App(image=image)
    other.function()(on_an_image)
    other.cls()(OnAnImage)
    parts = publish._parts(squall.App().include(other))
    assert [part.image.spec() for part in parts] == [image.spec()] * 2


@pytest.mark.parametrize("name", ["", "a/b", "ap-ap-x", "ap-", "x" * 80, "名前", "a.b_c-D"])
def test_the_name_of_a_running_app_is_always_possible(name: str) -> None:
    check_name(publish.ephemeral_name(squall.App(), name), "app")


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = squall.nonsense
    assert not hasattr(squall, "nonsense")


def test_the_submodules_that_programs_import_are_there() -> None:
    import squall.exception
    import squall.experimental
    import squall.functions
    import squall.gpu

    assert isinstance(squall.experimental.clustered, Missing)
    assert squall.functions.FunctionCall is squall.FunctionCall
    assert squall.exception.Error is squall.Error


def test_is_local_is_true_outside_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert squall.is_local()
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    assert not squall.is_local()


PROGRAM = """
import sys
import traceback
before = set(sys.modules)
import squall

app = squall.App("x", image=squall.Image.debian_slim().pip_install("numpy"))

@app.function(retries=2, timeout=10, gpu="H100", env={"A": "1"})
def f(x): return x

@app.function()
def g(): yield 1

@app.cls(cpu=1)
class C:
    n: int = squall.parameter(default=1)
    @squall.enter()
    def prepare(self): pass
    @squall.method()
    def run(self): return f.local(1)

@app.local_entrypoint()
def main(): pass

print(*sorted(set(sys.modules) - before))
"""

HEAVY = {
    *("asyncio", "cloudpickle", "concurrent.futures", "dataclasses", "hashlib", "http.client", "inspect", "json"),
    *("logging", "msgpack", "pickle", "rich", "socket", "ssl", "tempfile", "typer", "zipfile"),
    *("squall.client", "squall.http_api", "squall.invoke", "squall.mapping", "squall.payload", "squall.spec"),
}


def test_loading_a_program_in_a_container_imports_nothing_heavy() -> None:
    # As the runner starts Python: every module here is part of every cold start.
    code = f"import sys; sys.path[:0] = [{str(SRC)!r}]\n{PROGRAM}"
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env={"SQUALL_CONTAINER": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert HEAVY & set(answer.stdout.split()) == set()


def test_a_plain_traceback_says_what_to_do() -> None:
    error = exception.InvalidError("the value is wrong", fix="Write another one.")
    shown = "".join(traceback.format_exception(error))
    assert "the value is wrong\nFix: Write another one.\n" in shown
    assert "Fix: Write another one." in "".join(traceback.format_exception(pickle.loads(pickle.dumps(error))))
