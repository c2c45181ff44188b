"""Classes: parameters, methods, hooks, inheritance, and instances used here."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, session
from squall.http_api.protocol import Header, decode_parameters

app = squall.App("classes")


class Base:
    """Undecorated: its hooks, methods and parameters are inherited."""

    factor: int = squall.parameter(default=2)

    @squall.enter()
    def prepare_base(self) -> None:
        self.log = ["base"]

    @squall.method()
    def scale(self, x: int) -> int:
        return self.factor * x


@app.cls(cpu=1)
class Model(Base):
    """A model."""

    name: str = squall.parameter()
    key: bytes = squall.parameter(default=b"\x00\xff")
    version = 3

    @squall.enter()
    def prepare(self) -> None:
        self.log.append("model")

    @squall.exit()
    def close(self) -> None:
        """Does nothing."""

    @squall.method()
    def describe(self, x: int = 0) -> tuple[str, int, list[str]]:
        return self.name, self.scale.local(x), self.log

    @squall.method()
    async def later(self) -> str:
        return f"{self.name} later"

    @squall.method()
    def items(self, n: int) -> Iterator[int]:
        yield from range(n)

    def plain(self) -> str:
        return self.name.upper()


@app.cls()
class Empty:
    """A class without methods is legal."""


@app.cls()
class Caller:
    """Calls its own methods remotely."""

    @squall.method()
    def one(self) -> int:
        return 1

    @squall.method()
    def two(self) -> int:
        return int(self.one.remote()) + self.one() + self.one.local()


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway."""
    gateway.serve(app)
    with app.run():
        yield gateway


# --- remote ----------------------------------------------------------------------------------------------------------


def test_a_method_is_called_with_the_parameters_of_its_instance(running: FakeGateway) -> None:
    assert Model(name="m", factor=5).scale.remote(3) == 15
    headers = running.headers_of("POST /v1/calls")[-1]
    assert (headers[Header.FUNCTION], headers[Header.METHOD]) == ("ap-1/Model", "scale")
    assert decode_parameters(headers[Header.PARAMETERS]) == {"name": "m", "factor": 5, "key": b"\x00\xff"}


def test_defaults_are_applied_before_identity(running: FakeGateway) -> None:
    Model(name="m").scale.remote(1)
    Model(name="m", factor=2).scale.remote(1)
    first, second = running.headers_of("POST /v1/calls")[-2:]
    assert first[Header.PARAMETERS] == second[Header.PARAMETERS]


def test_a_class_without_parameters_sends_none(running: FakeGateway) -> None:
    assert Caller().one.remote() == 1
    assert Header.PARAMETERS not in running.headers_of("POST /v1/calls")[-1]


def test_methods_have_every_form_of_a_call(running: FakeGateway) -> None:
    model = Model(name="m", factor=3)
    assert list(model.scale.map([1, 2])) == [3, 6]
    assert list(model.items.remote_gen(3)) == [0, 1, 2]
    assert model.scale.spawn(2).get() == 6
    with pytest.raises(exception.InvalidError):
        model.items.remote(3)


def test_methods_of_self_can_be_called_remotely_and_plainly(running: FakeGateway) -> None:
    assert Caller().two.local() == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs the parameter 'name'"),
        ({"name": "m", "size": 1}, "no parameter 'size'"),
        ({"name": 5}, "name must be str"),
        ({"name": "m", "factor": True}, "factor must be int"),
    ],
)
def test_wrong_parameters_are_told_at_the_first_use_not_before(
    running: FakeGateway, given: dict[str, object], message: str
) -> None:
    model = Model(**given)
    with pytest.raises(TypeError, match=message):
        model.scale.remote(1)


def test_parameters_go_by_name_only() -> None:
    with pytest.raises(TypeError, match="by name"):
        Model("m")


def test_a_method_without_an_instance_says_what_to_write() -> None:
    with pytest.raises(AttributeError, match=r"Model\(\)\.scale\.remote"):
        Model.scale.remote(1)


def test_parameters_that_are_too_large_are_refused(running: FakeGateway) -> None:
    with pytest.raises(exception.InvalidError, match="16384"):
        Model(name="x" * 20_000).scale.remote(1)


def test_instances_and_their_methods_are_values(running: FakeGateway) -> None:
    model = pickle.loads(pickle.dumps(Model(name="m", factor=4)))
    assert model.scale.remote(2) == 8
    assert pickle.loads(pickle.dumps(model.scale)).remote(3) == 12
    assert list(model.items.remote_gen(2)) == [0, 1]
    assert pickle.loads(pickle.dumps(Model))(name="m").scale.remote(1) == 2


# --- here ------------------------------------------------------------------------------------------------------------


def test_local_runs_the_enter_hooks_once_base_classes_first() -> None:
    model = Model(name="m", factor=10)
    assert model.describe.local(2) == ("m", 20, ["base", "model"])
    assert model.describe.local(2) == ("m", 20, ["base", "model"])


async def test_local_of_an_async_method_gives_a_coroutine() -> None:
    assert await Model(name="m").later.local() == "m later"


def test_plain_attributes_and_methods_work_on_instances() -> None:
    model = Model(name="m")
    assert (model.plain(), model.factor, model.version, Model.version) == ("M", 2, 3, 3)
    model.extra = 5
    assert model.extra == 5


def test_a_decorated_class_can_be_a_base() -> None:
    class Derived(Model):  # type: ignore[misc, valid-type]
        pass

    assert Derived.version == 3
    assert "scale" in dir(Derived)


def test_a_class_without_methods_is_legal() -> None:
    assert repr(Empty()) == "Empty()"


def test_the_runner_finds_markers_on_plain_functions() -> None:
    raw = Model._squall_raw()
    assert raw.scale.__squall_method__
    assert raw.prepare.__squall_hook__ == "enter"
    assert raw.close.__squall_hook__ == "exit"
    assert raw.__dict__["name"].__squall_parameter__
    assert (raw.__dict__["key"].name, raw.__dict__["key"].default) == ("key", b"\x00\xff")


# --- declarations that are refused -----------------------------------------------------------------------------------


class WithInit:
    """Has its own constructor."""

    def __init__(self) -> None:
        self.x = 1


class InheritedInit(WithInit):
    """Inherits one."""


class WithConcurrentMethod:
    """Concurrency is the container's, not the method's."""

    @squall.method()
    def run(self) -> None:
        """Does nothing."""

    run.__squall_concurrent__ = (2, 2)  # type: ignore[attr-defined]


class WithSnapshot:
    """Wants a snapshot."""

    @squall.enter(snap=True)
    def load(self) -> None:
        """Does nothing."""


class WithListParameter:
    """A parameter of a type that has no identity."""

    values: list[int] = squall.parameter()


class WithUntypedParameter:
    """A parameter without a type."""

    value = squall.parameter()


class WithWrongDefault:
    """A default that is not of the type."""

    value: int = squall.parameter(default="x")


@pytest.mark.parametrize(
    "raw",
    [
        WithInit,
        InheritedInit,
        WithConcurrentMethod,
        WithSnapshot,
        WithListParameter,
        WithUntypedParameter,
        WithWrongDefault,
    ],
)
def test_classes_that_cannot_run_are_refused_when_they_are_declared(raw: type) -> None:
    with pytest.raises(exception.InvalidError):
        squall.App().cls()(raw)


def test_a_snapshot_allows_its_hooks_and_needs_templates() -> None:
    squall.App().cls(enable_memory_snapshot=True)(WithSnapshot)
    with pytest.raises(exception.InvalidError, match="use_template"):
        squall.App().cls(enable_memory_snapshot=True, use_template=False)(WithSnapshot)


def test_concurrent_on_a_method_is_refused_in_either_order() -> None:
    def run(self: object) -> None:
        """Does nothing."""

    with pytest.raises(exception.InvalidError, match="all methods"):
        squall.concurrent(max_inputs=2)(squall.method()(run))


def test_an_exit_hook_takes_no_arguments() -> None:
    def close(self: object, x: int) -> None:
        """Does nothing."""

    with pytest.raises(exception.InvalidError, match="arguments"):
        squall.exit()(close)


def test_markers_need_their_parentheses_and_stand_below_the_app() -> None:
    with pytest.raises(exception.InvalidError, match="parentheses"):
        squall.method(lambda self: None)  # type: ignore[arg-type]
    with pytest.raises(exception.InvalidError, match="above"):
        squall.concurrent(max_inputs=2)(Model)


def test_a_class_that_is_looked_up_asks_the_server_at_its_first_use(
    gateway: FakeGateway, connected: session.Session
) -> None:
    gateway.functions["Far"] = lambda: None
    gateway.functions["Far.run"] = lambda parameters: lambda x: (x, parameters)
    handle = squall.Cls.from_name("other", "Far")
    method = handle(size=3).run
    assert gateway.requests == []
    assert method.remote(1) == (1, {"size": 3, "key": b"k"})
    with pytest.raises(AttributeError, match="no method 'walk'"):
        handle().walk.remote()
    with pytest.raises(TypeError, match="no parameter 'depth'"):
        handle(depth=3).run.remote()


def test_a_class_tells_what_it_inherits() -> None:
    assert Model.__bases__ == (Base,)
    assert issubclass(Model, Base)  # type: ignore[arg-type]
    assert not hasattr(squall.Cls.from_name("classes", "Model"), "__bases__")
