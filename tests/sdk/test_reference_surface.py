"""The surface that programs are written against, name by name: each is served, or refused with an error that says why.

The tables follow the sections of the reference that the surface was taken from: apps (A1), decorator parameters (A2),
functions (A3), calls (A4), classes (A5), decorators (A6), retries and schedules (A11), module functions (A12),
exceptions (A13), old names (A14). A parameter is served if it changes what the server is told: none is parsed and
ignored.
"""

# ruff: noqa: PLW0108  # a member that is refused must not be looked up before the test
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, publish, session
from squall.spec import FunctionSpec, from_wire
from squall.unimplemented import Missing

CALL = "fc-" + "0" * 26
REFUSALS = (exception.UnimplementedError, exception.UnimplementedArgument, exception.DeprecationError)


def plain(x: Any = 0) -> Any:
    return x


def function() -> squall.Function:
    return squall.Function.from_name("app", "f")


# --- members: there, or refused when they are used -------------------------------------------------------------------

SERVED: dict[str, tuple[Any, list[str]]] = {
    "A1": (
        squall.App,
        [
            *("function", "cls", "local_entrypoint", "run", "deploy", "lookup", "include", "set_tags", "get_tags"),
            *("stop", "name", "app_id", "description", "info", "stats"),
        ],
    ),
    "A3": (
        squall.Function,
        [
            *("local", "remote", "remote_gen", "spawn", "map", "starmap", "for_each", "spawn_map"),
            *("experimental_spawn_map", "from_name", "with_options", "with_concurrency", "with_batching", "autoscaler"),
            *("update_autoscaler", "get_current_stats", "object_id", "hydrate", "info", "stats"),
        ],
    ),
    "A4": (
        squall.FunctionCall,
        ["get", "iter", "num_inputs", "cancel", "get_call_graph", "from_id", "gather", "object_id"],
    ),
    "A5": (squall.Cls, ["from_name", "with_options", "with_concurrency", "with_batching", "hydrate"]),
    "A6": (squall, ["concurrent", "batched", "method", "enter", "exit", "parameter"]),
    "A9 Secret": (
        squall.Secret,
        ["from_name", "from_dict", "from_local_environ", "from_dotenv", "objects", "update", "info", "name", "hydrate"],
    ),
    "A9 Dict": (
        squall.Dict,
        [
            *("from_name", "from_id", "ephemeral", "objects", "get", "put", "update", "pop", "contains", "len"),
            *("clear", "keys", "values", "items", "hydrate", "info", "object_id", "__getitem__", "__delitem__"),
        ],
    ),
    "A9 Queue": (
        squall.Queue,
        [
            *("from_name", "from_id", "ephemeral", "objects", "put", "put_many", "get", "get_many", "len", "clear"),
            *("iterate", "hydrate", "info", "object_id"),
        ],
    ),
    "A9 Volume": (
        squall.Volume,
        [
            *("from_name", "from_id", "ephemeral", "objects", "listdir", "iterdir", "read_file", "remove_file"),
            *("read_file_into_fileobj", "copy_files", "batch_upload", "rename", "hydrate", "info", "object_id"),
        ],
    ),
    "A9 objects": (squall.Secret.objects, ["create", "list", "delete"]),
    "A11": (squall, ["Retries", "Cron", "Period"]),
    "A8": (
        squall.Image,
        [
            *("debian_slim", "from_registry", "from_dockerfile", "from_scratch", "pip_install", "uv_pip_install"),
            *("pip_install_from_requirements", "pip_install_from_pyproject", "uv_sync", "poetry_install_from_file"),
            *("apt_install", "run_commands", "dockerfile_commands", "run_function", "entrypoint", "cmd", "shell"),
            *("env", "workdir", "pipe", "build", "add_local_file", "add_local_dir", "add_local_python_source"),
            *("imports", "object_id", "from_id", "from_name", "publish"),
        ],
    ),
    "A12": (squall, ["is_local", "current_input_id", "current_function_call_id", "enable_output"]),
}
REFUSED: dict[str, list[tuple[str, Callable[[], Any]]]] = {
    "A1": [
        ("server", lambda: squall.App().server()),
        ("sandboxes.stats", lambda: squall.App().sandboxes.stats()),
        ("get_dashboard_url", lambda: squall.App().get_dashboard_url()),
        ("run(interactive)", lambda: squall.App().run(interactive=True)),
        ("run(client)", lambda: squall.App().run(client=object())),  # type: ignore[arg-type]
        ("App(volumes)", lambda: squall.App(volumes={"/v": object()})),
    ],
    "A3": [
        ("stats(since)", lambda: function().stats(since=1.0)),
        ("metrics", lambda: function().metrics()),  # type: ignore[attr-defined]
        ("get_dashboard_url", lambda: function().get_dashboard_url()),  # type: ignore[attr-defined]
        ("with_options(volumes)", lambda: function().with_options(volumes={"/v": object()})),
        ("with_options(region)", lambda: function().with_options(region="eu")),
        ("with_options(cloud)", lambda: function().with_options(cloud="aws")),
        ("with_options(routing_region)", lambda: function().with_options(routing_region="us-east")),
    ],
    "A4": [("get_dashboard_url", lambda: squall.FunctionCall.from_id(CALL).get_dashboard_url())],  # type: ignore[attr-defined]
    "A5": [("Cls.update_autoscaler", lambda: squall.Cls.from_name("a", "C").update_autoscaler(min_containers=1))],
    "A6": [
        (name, lambda name=name: getattr(squall, name)())  # type: ignore[misc]
        for name in ("clustered", "sessioned")
    ],
    "A8": [
        ("micromamba", lambda: squall.Image.micromamba()),  # type: ignore[attr-defined]
        ("micromamba_install", lambda: squall.Image.debian_slim().micromamba_install("x")),  # type: ignore[attr-defined]
        ("from_aws_ecr", lambda: squall.Image.from_aws_ecr("x")),  # type: ignore[attr-defined]
        ("from_gcp_artifact_registry", lambda: squall.Image.from_gcp_artifact_registry("x")),  # type: ignore[attr-defined]
        ("private_repos", lambda: squall.Image.debian_slim().pip_install_private_repos("x")),  # type: ignore[attr-defined]
        ("pip_install(secrets)", lambda: squall.Image.debian_slim().pip_install("x", secrets=[object()])),
        ("run_commands(gpu)", lambda: squall.Image.debian_slim().run_commands("x", gpu="H100")),
        ("run_commands(volumes)", lambda: squall.Image.debian_slim().run_commands("x", volumes={"/v": object()})),
    ],
    "A9": [
        ("commit", lambda: squall.Volume.from_name("v").commit()),
        ("reload", lambda: squall.Volume.from_name("v").reload()),
        ("read_only", lambda: squall.Volume.from_name("v").read_only()),
        ("with_mount_options", lambda: squall.Volume.from_name("v").with_mount_options()),
    ],
    "A12": [
        ("interact", lambda: squall.interact()),
        *(
            (f"experimental.{name}", lambda name=name: getattr(squall.experimental, name)())  # type: ignore[misc]
            for name in (
                *("stop_fetching_inputs", "get_local_input_concurrency", "set_local_input_concurrency"),
                *("get_cluster_info", "clustered", "list_deployed_apps", "stop_app", "image_delete"),
            )
        ),
    ],
}


@pytest.mark.parametrize(
    ("owner", "name"),
    [pytest.param(owner, name, id=f"{section} {name}") for section, (owner, names) in SERVED.items() for name in names],
)
def test_members_that_are_served_are_there(owner: Any, name: str) -> None:
    assert not isinstance(getattr(owner, name), Missing)


@pytest.mark.parametrize(
    "use", [pytest.param(use, id=f"{section} {name}") for section, rows in REFUSED.items() for name, use in rows]
)
def test_members_that_are_not_served_say_why_when_used(use: Callable[[], Any]) -> None:
    with pytest.raises(REFUSALS) as caught:
        use()
    assert caught.value.hint, "an error that does not say what to do instead"


# --- A2: parameters --------------------------------------------------------------------------------------------------

PARAMETERS: dict[str, Any] = {
    "image": squall.Image.debian_slim().pip_install("numpy"),
    "env": {"A": "1"},
    "gpu": "H100",
    "cpu": 2,
    "memory": 1024,
    "min_containers": 1,
    "max_containers": 2,
    "buffer_containers": 1,
    "scaledown_window": 30,
    "retries": 2,
    "timeout": 10,
    "startup_timeout": 20,
    "single_use_containers": True,
    "include_source": False,
    "nonpreemptible": True,
    "enable_memory_snapshot": True,
    "use_template": False,
    "isolation": "sandbox",
    "block_network": True,
    "secrets": [squall.Secret.from_name("api")],
}
OF_FUNCTIONS: dict[str, Any] = {"is_generator": True, "serialized": True, "schedule": squall.Period(hours=1)}
REFUSED_PARAMETERS: dict[str, Any] = {
    "volumes": {"/v": object()},
    "network_file_systems": {"/v": object()},
    "ephemeral_disk": 1024,
    "proxy": object(),
    "cloud": "aws",
    "region": "eu",
    "routing_region": "us-east",
    "restrict_modal_access": True,
    "i6pn": True,
    "experimental_options": {"x": 1},
}


class Model:
    """A class with a method."""

    @squall.method()
    def run(self) -> None:
        """Does nothing."""


def told(gateway: FakeGateway, here: session.Session, app: squall.App) -> dict[str, FunctionSpec]:
    """What the server is told of the functions of an app, by their names."""
    publish.publish(app, here, "ephemeral", "x", "main")
    return {spec["name"]: from_wire(FunctionSpec, spec) for spec in gateway.apps[-1]["functions"]}


def without_effect(specs: dict[str, FunctionSpec]) -> list[str]:
    """Names of those that differ from `nothing` in their name only."""
    bare = replace(specs["nothing"], name="", code=replace(specs["nothing"].code, qualname=""))
    return [
        name
        for name, spec in specs.items()
        if name != "nothing" and replace(spec, name="", code=replace(spec.code, qualname="")) == bare
    ]


def test_every_parameter_of_functions_changes_what_the_server_is_told(
    gateway: FakeGateway, connected: session.Session
) -> None:
    app = squall.App()
    app.function(name="nothing")(plain)
    for name, value in {**PARAMETERS, **OF_FUNCTIONS}.items():
        app.function(**{name: value, "name": name})(plain)
    specs = told(gateway, connected, app)
    assert set(specs) == {"nothing", *PARAMETERS, *OF_FUNCTIONS}, "`name=` counts"
    assert without_effect(specs) == []


def test_every_parameter_of_classes_changes_what_the_server_is_told(
    gateway: FakeGateway, connected: session.Session
) -> None:
    app = squall.App()
    app.cls()(type("nothing", (Model,), {}))
    for name, value in PARAMETERS.items():
        app.cls(**{name: value})(type(name, (Model,), {}))
    assert without_effect(told(gateway, connected, app)) == []


@pytest.mark.parametrize("name", REFUSED_PARAMETERS)
def test_a_parameter_that_is_not_served_says_why(name: str) -> None:
    with pytest.raises(exception.UnimplementedArgument, match=name) as caught:
        squall.App().function(**{name: REFUSED_PARAMETERS[name]})
    assert caught.value.hint


@pytest.mark.parametrize("name", ["schedule", "name", "is_generator"])
def test_what_only_functions_have_is_unknown_to_classes(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        squall.App().cls(**{name: "x"})


# --- A13: exceptions -------------------------------------------------------------------------------------------------

EXCEPTIONS = [
    *("AuthError", "PermissionDeniedError", "NotFoundError", "AlreadyExistsError", "ConflictError", "InvalidError"),
    *("ResourceExhaustedError", "UnimplementedError", "InternalError", "ServiceError", "DataLossError", "RemoteError"),
    *("ImageBuildError", "ExecutionError", "SerializationError", "DeserializationError", "RequestSizeError"),
    *("InternalFailure", "ConnectionError", "VersionError", "ClientClosed", "ModuleNotMountable", "TimeoutError"),
    *("FunctionTimeoutError", "OutputExpiredError", "InputCancellation", "DeprecationError", "AsyncUsageWarning"),
]
NEVER_RAISED = [
    *("SandboxTimeoutError", "ExecTimeoutError", "SandboxTerminatedError", "MountUploadTimeoutError"),
    *(
        "VolumeUploadTimeoutError",
        "InteractiveTimeoutError",
        "SnapshotCreationError",
        "LogsFetchError",
        "ServerWarning",
    ),
]


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exceptions_are_there(name: str) -> None:
    assert issubclass(getattr(exception, name), BaseException)


@pytest.mark.parametrize("name", NEVER_RAISED)
def test_exceptions_of_what_squall_does_not_have_say_so(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name}.*squall does not have"):
        getattr(exception, name)


# --- A14: old names --------------------------------------------------------------------------------------------------

WORK_WITH_A_WARNING: dict[str, Any] = {
    "keep_warm": 1,
    "concurrency_limit": 2,
    "container_idle_timeout": 30,
    "allow_concurrent_inputs": 5,
    "max_inputs": 1,
}
OLD_KEYWORDS: dict[str, Any] = {
    "secret": object(),
    "mounts": [object()],
    "checkpointing_enabled": True,
    "interactive": True,
}


def test_every_old_keyword_counts_and_warns(gateway: FakeGateway, connected: session.Session) -> None:
    app = squall.App()
    app.function(name="nothing")(plain)
    for name, value in WORK_WITH_A_WARNING.items():
        with pytest.warns(DeprecationWarning, match=f"`{name}=`"):
            app.function(**{name: value, "name": name})(plain)
    assert without_effect(told(gateway, connected, app)) == []


@pytest.mark.parametrize("name", OLD_KEYWORDS)
def test_an_old_keyword_without_a_heir_names_what_to_do(name: str) -> None:
    with pytest.raises(exception.DeprecationError, match=name):
        squall.App().function(**{name: OLD_KEYWORDS[name]})


@pytest.mark.parametrize("name", ["Stub", "Mount", "SharedVolume", "build", "gpu"])
def test_an_old_name_of_the_module_names_its_heir(name: str) -> None:
    with pytest.raises(AttributeError, match=f"{name}.*; use "):
        getattr(squall, name)


@pytest.mark.parametrize(
    "use",
    [
        lambda: squall.Function.lookup("a", "b"),  # type: ignore[attr-defined]
        lambda: squall.Cls.lookup("a", "b"),  # type: ignore[attr-defined]
        lambda: function().web_url(),  # type: ignore[attr-defined]
        lambda: squall.Image.debian_slim().copy_local_file("a", "/b"),  # type: ignore[attr-defined]
        lambda: squall.Image.debian_slim().copy_local_dir("a", "/b"),  # type: ignore[attr-defined]
        lambda: function().call(1),  # type: ignore[attr-defined]
    ],
    ids=["Function.lookup", "Cls.lookup", "web_url", "copy_local_file", "copy_local_dir", "f.call"],
)
def test_an_old_member_fails_with_its_heir_named(use: Callable[[], Any]) -> None:
    with pytest.raises((exception.UnimplementedError, AttributeError)) as caught:
        use()
    said = f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert any(heir in said for heir in ("from_name", "remote", "add_local_", "get_web_url")), said
