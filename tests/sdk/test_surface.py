"""The public names: that they are all there, what the missing ones say, and what `import squall` costs."""

from __future__ import annotations

import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import squall
from squall import exception
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


@pytest.mark.parametrize(("old", "new"), [("SharedVolume", "results"), ("build", "enter")])
def test_old_names_are_told_with_their_new_ones(old: str, new: str) -> None:
    with pytest.raises(AttributeError, match=new):
        getattr(squall, old)


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
