"""What decorators accept, refuse and make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, publish, session
from squall.app import App
from squall.spec import BatchPolicy, FunctionSpec, GpuRequest, Resources, RetryPolicy, ScalingPolicy


def plain(x: int = 0) -> int:
    return x


def items() -> Iterator[int]:
    yield 1


async def later() -> None:
    """Does nothing."""


async def later_items():  # type: ignore[no-untyped-def]
    yield 1


class Plain:
    """A class with a method."""

    def method(self) -> None:
        """Does nothing."""

    @squall.method()
    def run(self) -> None:
        """Does nothing."""


def spec_of(app: App, gateway: FakeGateway, connected: session.Session) -> FunctionSpec:
    """The one function of an app, as the server gets it."""
    from squall.spec import from_wire

    publish.publish(app, connected, "ephemeral", "x", "main")
    return from_wire(FunctionSpec, gateway.apps[-1]["functions"][0])


def declared(gateway: FakeGateway, connected: session.Session, **keywords: Any) -> FunctionSpec:
    app = App()
    app.function(**keywords)(plain)
    return spec_of(app, gateway, connected)


# --- what becomes of the values --------------------------------------------------------------------------------------


def test_defaults(gateway: FakeGateway, connected: session.Session) -> None:
    spec = declared(gateway, connected)
    assert (spec.name, spec.code.module, spec.code.qualname) == ("plain", __name__, "plain")
    assert (spec.timeout_s, spec.startup_timeout_s, spec.env, spec.is_class) == (300, 300, {}, False)
    assert spec.resources == Resources()
    assert spec.scaling == ScalingPolicy()
    assert spec.retry == RetryPolicy()


def test_every_value_reaches_the_server(gateway: FakeGateway, connected: session.Session) -> None:
    spec = declared(
        gateway,
        connected,
        name="other",
        cpu=(0.5, 2),
        memory=(256, 1024),
        gpu=["h100!:2", "A100"],
        env={"MODE": "fast", "UNSET": None},
        min_containers=1,
        max_containers=7,
        buffer_containers=2,
        scaledown_window=30,
        timeout=20,
        startup_timeout=40,
        nonpreemptible=True,
        retries=squall.Retries(max_retries=4, backoff_coefficient=1.5, initial_delay=2, max_delay=30),
    )
    assert spec.name == "other"
    assert spec.resources == Resources(0.5, 2, 256, 1024, (GpuRequest("H100", 2, True), GpuRequest("A100")))
    assert spec.env == {"MODE": "fast"}
    assert spec.scaling == ScalingPolicy(1, 7, 2, 30)
    assert (spec.timeout_s, spec.startup_timeout_s, spec.nonpreemptible) == (20, 40, True)
    assert spec.retry == RetryPolicy(4, 1.5, 2, 30)


def test_startup_timeout_is_the_timeout_unless_said(gateway: FakeGateway, connected: session.Session) -> None:
    assert declared(gateway, connected, timeout=50).startup_timeout_s == 50


def test_a_number_of_retries_means_one_second_each(gateway: FakeGateway, connected: session.Session) -> None:
    assert declared(gateway, connected, retries=3).retry == RetryPolicy(3, 1.0, 1.0)


def test_concurrent_says_how_many_inputs_a_container_takes(gateway: FakeGateway, connected: session.Session) -> None:
    def busy() -> None:
        """Does nothing."""

    busy.__qualname__ = "plain"
    app = App()
    app.function()(squall.concurrent(max_inputs=10, target_inputs=5)(busy))
    scaling = spec_of(app, gateway, connected).scaling
    assert (scaling.max_inputs, scaling.target_inputs) == (10, 5)


@pytest.mark.parametrize(
    ("raw", "generator", "is_async"),
    [(plain, False, False), (items, True, False), (later, False, True), (later_items, True, True)],
)
def test_the_kind_of_a_function_is_seen_from_its_code(
    gateway: FakeGateway, connected: session.Session, raw: Any, generator: bool, is_async: bool
) -> None:
    app = App()
    app.function()(raw)
    method = spec_of(app, gateway, connected).methods[0]
    assert (method.is_generator, method.is_async) == (generator, is_async)


def test_a_decorator_is_also_a_plain_call() -> None:
    app = App()
    handle = app.function(cpu=2)(plain)
    assert handle.local(3) == 3
    assert app.registered_functions == {"plain": handle}
    assert app.cls(cpu=2)(Plain) is app.registered_classes["Plain"]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_unknown_keywords_are_type_errors() -> None:
    with pytest.raises(TypeError, match="colour"):
        App().function(colour="red")
    with pytest.raises(TypeError, match="colour"):
        App().cls(colour="red")
    with pytest.raises(TypeError, match="colour"):
        App(colour="red")


@pytest.mark.parametrize(
    "keywords",
    [
        {"proxy": object()},
    ],
    ids=lambda keywords: next(iter(keywords)),
)
def test_what_is_not_built_says_so_and_what_to_do_instead(keywords: dict[str, Any]) -> None:
    with pytest.raises(exception.UnimplementedArgument, match=next(iter(keywords))) as caught:
        App().function(**keywords)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("keywords", "isolation"),
    [
        ({}, "process"),
        ({"isolation": "gvisor"}, "gvisor"),
        ({"block_network": True}, "sandbox"),
        ({"outbound_cidr_allowlist": ["203.0.113.0/24"]}, "sandbox"),
        ({"outbound_cidr_allowlist": [], "isolation": "gvisor"}, "gvisor"),
    ],
)
def test_rules_about_the_network_demand_a_node_that_isolates(
    gateway: FakeGateway, connected: session.Session, keywords: dict[str, Any], isolation: str
) -> None:
    app = App()
    app.function(**keywords)(plain)
    spec = spec_of(app, gateway, connected)
    assert spec.isolation == isolation
    assert spec.block_network is keywords.get("block_network", False)
    allowed = keywords.get("outbound_cidr_allowlist")
    assert spec.outbound_cidr_allowlist == (None if allowed is None else tuple(allowed))


@pytest.mark.parametrize(
    ("keywords", "isolation"),
    [({}, "sandbox"), ({"isolation": "process"}, "sandbox"), ({"isolation": "gvisor"}, "gvisor")],
)
def test_an_image_with_files_of_its_own_demands_a_node_that_isolates(
    gateway: FakeGateway, connected: session.Session, keywords: dict[str, Any], isolation: str
) -> None:
    app = App(image=squall.Image.debian_slim().run_commands("make"))
    app.function(**keywords)(plain)
    assert spec_of(app, gateway, connected).isolation == isolation


@pytest.mark.parametrize(
    ("keywords", "isolation", "steps"),
    [({}, "process", []), ({"isolation": "sandbox"}, "sandbox", ["add_local"])],
)
def test_files_that_are_copied_last_demand_no_isolation(
    gateway: FakeGateway, connected: session.Session, keywords: dict[str, Any], isolation: str, steps: list[str]
) -> None:
    app = App(image=squall.Image.debian_slim().add_local_file(__file__, "/data/a.py", copy=True))
    app.function(**keywords)(plain)
    spec = spec_of(app, gateway, connected)
    assert spec.isolation == isolation
    assert [step.kind for step in spec.image.steps] == steps


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"isolation": "vm"}, "isolation must be one of process, sandbox, gvisor"),
        ({"isolation": "gvisor", "gpu": "T4"}, 'have no GPUs: with gpu= use isolation="sandbox"'),
        ({"isolation": "process", "block_network": True}, 'need isolation="sandbox"'),
        ({"block_network": True, "outbound_cidr_allowlist": []}, "exclude each other"),
        ({"outbound_cidr_allowlist": ["example.org"]}, "example.org"),
        ({"outbound_cidr_allowlist": "10.0.0.0/8"}, "must be a list of networks"),
    ],
)
def test_rules_about_isolation_that_make_no_sense_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(exception.InvalidError, match=words):
        App().function(**keywords)(plain)


def test_a_value_that_means_not_used_is_accepted() -> None:
    App().function(secrets=[], volumes={}, schedule=None, serialized=False, region=None, enable_memory_snapshot=False)
    App("x", secrets=[], volumes={})


@pytest.mark.parametrize(
    ("old", "new", "scaling"),
    [
        ("keep_warm", "min_containers", ScalingPolicy(min_containers=3)),
        ("concurrency_limit", "max_containers", ScalingPolicy(max_containers=3)),
        ("container_idle_timeout", "scaledown_window", ScalingPolicy(scaledown_window_s=3)),
        ("allow_concurrent_inputs", "squall.concurrent", ScalingPolicy(max_inputs=3, target_inputs=3)),
    ],
)
def test_old_names_work_and_are_told_with_their_new_ones(
    gateway: FakeGateway, connected: session.Session, old: str, new: str, scaling: ScalingPolicy
) -> None:
    with pytest.warns(DeprecationWarning, match=f"`{old}=`.*{new}") as told:
        spec = declared(gateway, connected, **{old: 3})
    assert spec.scaling == scaling
    assert told[0].filename == __file__


def test_an_old_name_beside_its_new_one_is_refused() -> None:
    with (
        pytest.warns(DeprecationWarning, match="is called"),
        pytest.raises(exception.InvalidError, match="same setting"),
    ):
        App().function(keep_warm=1, min_containers=2)


def test_single_use_containers_by_both_names(gateway: FakeGateway, connected: session.Session) -> None:
    assert declared(gateway, connected, single_use_containers=True).single_use
    with pytest.warns(DeprecationWarning, match="single_use_containers"):
        assert declared(gateway, connected, max_inputs=1).single_use
    with (
        pytest.warns(DeprecationWarning, match="is called"),
        pytest.raises(exception.InvalidError, match="one input, or any number"),
    ):
        App().function(max_inputs=2)


def test_single_use_containers_take_no_two_inputs_at_once() -> None:
    with pytest.raises(exception.InvalidError, match="max_inputs must be 1"):
        App().function(single_use_containers=True)(squall.concurrent(max_inputs=2)(fresh()))


# --- functions by value ----------------------------------------------------------------------------------------------


def test_a_function_by_value_needs_the_python_of_its_image(gateway: FakeGateway, connected: session.Session) -> None:
    app = App(image=squall.Image.debian_slim("3.9"))
    app.function(serialized=True)(plain)
    with pytest.raises(exception.InvalidError, match=r"its image has Python 3\.9"):
        spec_of(app, gateway, connected)


def test_a_function_by_value_that_holds_what_cannot_travel_is_named(
    gateway: FakeGateway, connected: session.Session
) -> None:
    items_of_it = (x for x in ())

    def holds() -> object:
        return items_of_it

    app = App()
    app.function(serialized=True)(holds)
    with pytest.raises(exception.SerializationError, match=r"holds cannot be serialized: .*generator"):
        spec_of(app, gateway, connected)


def test_a_function_by_value_comes_without_its_file(gateway: FakeGateway, connected: session.Session) -> None:
    app = App()
    app.function(serialized=True)(plain)
    spec = spec_of(app, gateway, connected)
    assert spec.code.module.startswith("squall_serialized_")
    assert spec.code.qualname == "function"


# --- batches ---------------------------------------------------------------------------------------------------------


def fresh() -> Any:
    """A function that no other test has marked."""
    return functools.update_wrapper(type(plain)(plain.__code__, globals()), plain)


def test_a_batch_is_declared_with_its_slots(gateway: FakeGateway, connected: session.Session) -> None:
    app = App()
    app.function()(
        squall.batched(max_batch_size=8, wait_ms=50)(squall.concurrent(max_inputs=3, target_inputs=2)(fresh()))
    )
    spec = spec_of(app, gateway, connected)
    assert spec.batching == BatchPolicy(8, 50)
    assert (spec.scaling.max_inputs, spec.scaling.target_inputs) == (24, 16)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_batch_size": 0, "wait_ms": 1}, "max_batch_size must be 1 to 1000"),
        ({"max_batch_size": 1001, "wait_ms": 1}, "max_batch_size must be 1 to 1000"),
        ({"max_batch_size": 2.5, "wait_ms": 1}, "max_batch_size must be 1 to 1000"),
        ({"max_batch_size": 2, "wait_ms": -1}, "wait_ms must be 0 to 600000"),
        ({"max_batch_size": 2, "wait_ms": 600_001}, "wait_ms must be 0 to 600000"),
    ],
)
def test_batches_outside_of_the_limits_are_refused(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(exception.InvalidError, match=said):
        squall.batched(**limits)


def test_what_cannot_be_batched_is_told() -> None:
    batched = squall.batched(max_batch_size=2, wait_ms=1)
    with pytest.raises(exception.InvalidError, match="cannot have defaults"):
        batched(plain)
    with pytest.raises(exception.InvalidError, match="is a generator"):
        batched(items)
    with pytest.raises(exception.InvalidError, match=r"\*args"):
        batched(lambda *args: list(args))
    with pytest.raises(exception.InvalidError, match="is a class"):
        batched(type("Model", (), {}))


def test_a_batched_method_is_the_only_one_of_its_class(gateway: FakeGateway, connected: session.Session) -> None:
    with pytest.raises(exception.InvalidError, match="must be the only one"):
        App().cls()(TwoMethods)
    app = App()
    app.cls()(Batched)
    spec = spec_of(app, gateway, connected)
    assert [method.name for method in spec.methods] == ["run"]
    assert spec.batching == BatchPolicy(4, 10)


class Batched:
    """A class whose method is batched."""

    @squall.batched(max_batch_size=4, wait_ms=10)
    def run(self, x: list[int]) -> list[int]:
        return x


class TwoMethods(Batched):
    """And another method."""

    @squall.method()
    def other(self) -> None:
        """Does nothing."""


@pytest.mark.parametrize(
    "keywords",
    [
        {"timeout": None},
        {"timeout": 0},
        {"timeout": 90_000},
        {"timeout": "60"},
        {"scaledown_window": 1},
        {"scaledown_window": 3601},
        {"min_containers": 3, "max_containers": 2},
        {"max_containers": 0},
        {"min_containers": -1},
        {"min_containers": 1.5},
        {"gpu": True},
        {"gpu": 4},
        {"gpu": "H100:0"},
        {"gpu": "H100:9"},
        {"gpu": "H100:two"},
        {"gpu": "H100:2!"},
        {"gpu": "H1000"},
        {"gpu": ""},
        {"gpu": "!"},
        {"nonpreemptible": "yes"},
        {"env": {"CUDA_VISIBLE_DEVICES": "0"}},
        {"gpu": ["A100", 5]},
        {"env": {"A": 1}},
        {"env": {"SQUALL_TOKEN": "x"}},
        {"env": {"A=B": "x"}},
        {"retries": "3"},
        {"retries": True},
        {"retries": -1},
        {"name": "not a name"},
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_when_the_function_is_declared(keywords: dict[str, Any]) -> None:
    with pytest.raises(exception.InvalidError):
        App().function(**keywords)(plain)


@pytest.mark.parametrize(
    "keywords",
    [{"cpu": (2, 1)}, {"memory": (512, 256)}, {"cpu": 0}, {"memory": 1.5}, {"ephemeral_disk": 1}],
    ids=str,
)
def test_resources_are_checked_when_the_app_is_published(
    gateway: FakeGateway, connected: session.Session, keywords: dict[str, Any]
) -> None:
    app = App()
    app.function(**keywords)(plain)
    with pytest.raises(exception.InvalidError):
        publish.publish(app, connected, "ephemeral", "x", "main")
    assert gateway.apps == []


def _decorated(raw: Any) -> Callable[[], Any]:
    return lambda: App().function()(raw)


@pytest.mark.parametrize(
    ("declare", "expected"),
    [
        (_decorated(Plain), TypeError),
        (_decorated(Plain.method), exception.InvalidError),
        (_decorated(Plain.run), exception.InvalidError),
        (_decorated(functools.partial(plain, 1)), exception.InvalidError),
        (_decorated(lambda: None), exception.InvalidError),
        (lambda: App().function(plain), TypeError),
        (lambda: App().cls(Plain), TypeError),
        (lambda: App().cls()(plain), TypeError),
        (lambda: App().local_entrypoint(plain), exception.InvalidError),
        (lambda: App().function(retries=2)(items), exception.InvalidError),
        (lambda: App().function()(App().function()(plain)), exception.InvalidError),
        (lambda: squall.concurrent(max_inputs=2)(App().function()(plain)), exception.InvalidError),
        (lambda: squall.concurrent(max_inputs=0), exception.InvalidError),
        (lambda: squall.concurrent(max_inputs=2, target_inputs=3), exception.InvalidError),
        (lambda: squall.concurrent(plain), exception.InvalidError),
        (lambda: App("no spaces").deploy(), exception.InvalidError),
        (lambda: App("ap-123").deploy(), exception.InvalidError),
    ],
)
def test_misplaced_decorators_are_refused(declare: Callable[[], Any], expected: type[Exception]) -> None:
    with pytest.raises(expected):
        declare()


def test_a_nested_function_is_refused_because_no_container_can_import_it() -> None:
    def nested() -> None:
        """Does nothing."""

    with pytest.raises(exception.InvalidError, match="inside another function"):
        App().function()(nested)


def test_the_same_name_twice_warns_and_the_later_one_counts() -> None:
    app = App()
    app.function()(plain)
    with pytest.warns(UserWarning, match="two functions named 'plain'"):
        second = app.function(cpu=2)(plain)
    assert app.registered_functions == {"plain": second}


def test_two_apps_of_one_name_in_a_file_warn() -> None:
    first = App("twins")
    with pytest.warns(UserWarning, match="twins"):
        App("twins")
    assert first.name == "twins"


def test_entrypoints_are_kept_by_name_and_callable() -> None:
    app = App()
    entrypoint = app.local_entrypoint()(plain)
    named = app.local_entrypoint(name="other")(plain)
    assert app.registered_entrypoints == {"plain": entrypoint, "other": named}
    assert entrypoint(5) == 5


@pytest.mark.parametrize(
    "keywords",
    [
        {"max_retries": -1},
        {"max_retries": 1, "backoff_coefficient": 0.5},
        {"max_retries": 1, "backoff_coefficient": 11},
        {"max_retries": 1, "initial_delay": 61},
        {"max_retries": 1, "max_delay": 0.5},
    ],
    ids=str,
)
def test_retries_outside_their_limits_are_refused(keywords: dict[str, Any]) -> None:
    with pytest.raises(exception.InvalidError):
        squall.Retries(**keywords)
