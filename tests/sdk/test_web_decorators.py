"""Web decorators: what they note, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import squall
from squall.errors import InvalidError
from squall.publish import _parts, _spec
from squall.spec import CodeRef, WebSpec

app = squall.App("declares")


@app.function()
@squall.fastapi_endpoint(method="POST", label="mine", docs=True, requires_proxy_auth=True, custom_domains=["a.io"])
def endpoint(x: int) -> int:
    return x + 1


@app.cls()
@squall.concurrent(max_inputs=5)
class Served:
    @squall.web_server(8000, startup_timeout=30)
    def serve(self) -> None: ...

    @squall.method()
    def plain(self) -> None: ...


def methods(name: str) -> dict[str, Any]:
    code = CodeRef("ab" * 32, "app", "f")
    (part,) = (part for part in _parts(app) if part.name == name)
    return {method.name: method.web for method in _spec(part, code).methods}


def test_a_function_carries_what_its_decorator_said() -> None:
    assert methods("endpoint") == {"": WebSpec("fastapi", "POST", True, "mine", ("a.io",), True)}


def test_methods_of_a_class_may_be_web_functions_beside_plain_ones() -> None:
    assert methods("Served") == {"serve": WebSpec("server", port=8000, startup_timeout_s=30.0), "plain": None}


def test_a_server_is_a_class_without_methods_that_answers_requests() -> None:
    handle = app.registered_classes["Runs"]
    web = WebSpec("server", label="s", requires_proxy_auth=True, port=9000, startup_timeout_s=30.0)
    (method,) = handle.method_specs()
    assert (method.name, method.web) == ("", replace(web, stateless=True, websocket_grace_s=7.0))
    scaling = handle.declaration.scaling()
    assert (scaling.max_inputs, scaling.target_inputs, scaling.max_containers) == (10, 3, 4)
    with pytest.raises(InvalidError, match="no instances"):
        Runs()


class Starts:
    @squall.enter()
    def start(self) -> None: ...


@app.server(port=9000, target_concurrency=2.5, max_concurrency=10, max_containers=4, exit_grace_period=7, label="s")
class Runs(Starts): ...


class WithMethod(Starts):
    @squall.method()
    def method(self) -> None: ...


class WithParameter(Starts):
    size: int = squall.parameter(default=1)


class StartsNothing: ...


@pytest.mark.parametrize(
    ("keywords", "raw", "words"),
    [
        ({"port": "80"}, Starts, "port"),
        ({"max_concurrency": 0}, Starts, "max_concurrency"),
        ({"target_concurrency": 5, "max_concurrency": 4}, Starts, "must not be more"),
        ({"target_concurrency": -1}, Starts, "target_concurrency"),
        ({"exit_grace_period": -1}, Starts, "exit_grace_period"),
        ({"unauthenticated": "no"}, Starts, "unauthenticated"),
        ({"startup_timeout": 0}, Starts, "startup_timeout"),
        ({"h2_enabled": True}, Starts, "h2_enabled"),
        ({"scaleup_window": 5}, Starts, "scaleup_window"),
        ({}, WithMethod, "neither parameters nor methods"),
        ({}, WithParameter, "neither parameters nor methods"),
        ({}, StartsNothing, "starts no server"),
        ({}, squall.concurrent(max_inputs=2)(type("Marked", (Starts,), {"__module__": __name__})), "does not go"),
        ({}, lambda: None, "plain class"),
    ],
)
def test_what_a_server_cannot_be_is_refused(keywords: dict[str, Any], raw: Any, words: str) -> None:
    with pytest.raises((InvalidError, squall.errors.UnimplementedArgument), match=words):
        squall.App().server(**keywords)(raw)


def test_the_old_name_works_and_tells_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="fastapi_endpoint"):
        mark = squall.web_endpoint(method="PUT")
    assert mark(lambda: None).__squall_web__.method == "PUT"


def plain() -> None: ...


def marked() -> None: ...


def generator() -> Any:
    yield 1


async def coroutine() -> None: ...


def with_parameter(x: int) -> None: ...


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: squall.asgi_app(plain), "parentheses"),  # type: ignore[arg-type]
        (lambda: squall.fastapi_endpoint(method="GRAB"), "GRAB"),
        (lambda: squall.asgi_app(label="Not_Valid"), "label"),
        (lambda: squall.asgi_app(label="x" * 64), "label"),
        (lambda: squall.asgi_app(custom_domains="a.io"), "list"),
        (lambda: squall.asgi_app(custom_domains=["https://a.io"]), "host name"),
        (lambda: squall.web_server("8000"), "port"),  # type: ignore[arg-type]
        (lambda: squall.web_server(0), "port"),
        (lambda: squall.web_server(80, startup_timeout=0), "startup_timeout"),
        (lambda: squall.fastapi_endpoint()(generator), "generator"),
        (lambda: squall.asgi_app()(coroutine), "async"),
        (lambda: squall.wsgi_app()(with_parameter), "without arguments"),
        (lambda: squall.asgi_app()(squall.asgi_app()(lambda: None)), "two web"),
        (lambda: squall.asgi_app()(squall.method()(lambda: None)), "method"),
        (lambda: squall.asgi_app()(type("C", (), {})), "class"),
        (lambda: squall.App().function(retries=2)(squall.asgi_app()(marked)), "retries"),
        (lambda: squall.asgi_app()(squall.App().function()(plain)), "stands above"),
    ],
)
def test_what_a_web_function_cannot_be_is_refused(declare: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        declare()


def test_a_web_function_is_not_called_but_runs_here() -> None:
    for call in (endpoint.remote, endpoint.spawn):
        with pytest.raises(InvalidError, match="web function"):
            call(1)
    assert endpoint.local(1) == 2


def test_older_spellings_of_a_server_work_and_answer_everybody() -> None:
    app = squall.App()
    made = type("Made", (Starts,), {"__module__": __name__})
    limited = squall.concurrent(target_inputs=7)(made)
    with pytest.warns(DeprecationWarning, match=r"@app\.server"):
        served = app.cls(image=squall.Image.debian_slim(), min_containers=2)(
            squall.experimental.http_server(port=9000, proxy_regions=["us-west"], startup_timeout=8)(limited)
        )
    assert isinstance(served, squall.Server)
    assert served.declaration.image is not None
    assert (served.declaration.min_containers, served.declaration.target_inputs) == (2, 7)
    assert served.declaration.max_inputs == 1000
    (method,) = served.method_specs()
    assert method.web is not None
    assert (method.web.port, method.web.startup_timeout_s, method.web.requires_proxy_auth) == (9000, 8, False)

    with pytest.warns(DeprecationWarning, match=r"@app\.server\(unauthenticated=True\)"):
        old = app._experimental_server(port=9001)(type("Old", (Starts,), {"__module__": __name__}))
    (method,) = old.method_specs()
    assert method.web is not None
    assert (method.web.port, method.web.requires_proxy_auth) == (9001, False)
    with pytest.raises(TypeError, match="port"):
        squall.experimental.http_server(made)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="max_inputs"):
        squall.concurrent()
