"""The surface that programs are written against, name by name: each is served, or refused with an error that says why.

The tables follow the sections of the reference that the surface was taken from: apps (A1), decorator parameters (A2),
functions (A3), calls (A4), classes (A5), decorators (A6), retries and schedules (A11), module functions (A12),
exceptions (A13), old names (A14). A parameter is served if it changes what the server is told: none is parsed and
ignored.
"""

# ruff: noqa: PLW0108  # a member that is refused must not be looked up before the test
from __future__ import annotations

import importlib
import io
import re
import signal
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, network_file_system, publish, published_images, session
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
            *("update_autoscaler", "get_current_stats", "object_id", "hydrate", "info", "stats", "is_hydrated"),
        ],
    ),
    "A4": (
        squall.FunctionCall,
        [
            *("get", "iter", "num_inputs", "cancel", "get_call_graph", "from_id", "gather", "object_id"),
            *("hydrate", "is_hydrated"),
        ],
    ),
    "A5": (
        squall.Cls,
        [
            *("from_name", "with_options", "with_concurrency", "with_batching", "hydrate"),
            *("is_hydrated", "object_id"),
        ],
    ),
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
            *("commit", "reload", "read_only", "with_mount_options"),
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
        ("sandboxes.stats", lambda: squall.App().sandboxes.stats()),
        ("run(interactive)", lambda: squall.App().run(interactive=True)),
        ("run(client)", lambda: squall.App().run(client=object())),  # type: ignore[arg-type]
    ],
    "A3": [
        ("stats(since)", lambda: function().stats(since=1.0)),
        ("metrics", lambda: function().metrics()),  # type: ignore[attr-defined]
        ("from_id", lambda: squall.Function.from_id("fu-1")),  # type: ignore[attr-defined]
        ("client", lambda: function().client.stub),  # type: ignore[attr-defined]
    ],
    "A4": [("logs", lambda: squall.FunctionCall.from_id(CALL).logs.fetch())],  # type: ignore[attr-defined]
    "A5": [
        ("Cls.update_autoscaler", lambda: squall.Cls.from_name("a", "C").update_autoscaler(min_containers=1)),
        ("Cls.get_dashboard_url", lambda: squall.Cls.from_name("a", "C").get_dashboard_url()),
    ],
    "A7": [
        (f"Server.{name}", lambda name=name: getattr(squall.Server.from_name("a", "S"), name)())  # type: ignore[misc]
        for name in ("from_id", "info", "metrics")
    ],
    "A9": [
        *(
            (f"{owner.__name__}.{name}", lambda owner=owner, name=name: getattr(owner.from_name("x"), name).stub())  # type: ignore[misc]
            for owner in (squall.Dict, squall.Queue, squall.Volume)
            for name in ("client", "get_dashboard_url")
        ),
        *(
            (f"Environment.{name}", lambda name=name: getattr(squall.Environment("x"), name).list())  # type: ignore[misc]
            for name in ("apps", "billing", "client", "get_dashboard_url", "hydrate", "members", "object_id", "roles")
        ),
    ],
    "A6": [
        (name, lambda name=name: getattr(squall, name)())  # type: ignore[misc]
        for name in ("clustered", "sessioned")
    ],
    "A8": [
        ("micromamba", lambda: squall.Image.micromamba()),  # type: ignore[attr-defined]
        ("micromamba_install", lambda: squall.Image.debian_slim().micromamba_install("x")),  # type: ignore[attr-defined]
        ("from_aws_ecr", lambda: squall.Image.from_aws_ecr("x")),  # type: ignore[attr-defined]
        ("from_gcp_artifact_registry", lambda: squall.Image.from_gcp_artifact_registry("x")),  # type: ignore[attr-defined]
        ("hydrate", lambda: squall.Image.debian_slim().hydrate()),  # type: ignore[attr-defined]
        ("logs", lambda: squall.Image.debian_slim().logs.fetch()),  # type: ignore[attr-defined]
        ("dockerfile_commands(env)", lambda: squall.Image.debian_slim().dockerfile_commands("RUN x", env={"A": "1"})),
        ("private_repos", lambda: squall.Image.debian_slim().pip_install_private_repos("x")),  # type: ignore[attr-defined]
        ("apt_install(secrets)", lambda: squall.Image.debian_slim().apt_install("x", secrets=[object()])),
    ],
    "A12": [
        ("interact", lambda: squall.interact()),
        *(
            (f"experimental.{name}", lambda name=name: getattr(squall.experimental, name)())  # type: ignore[misc]
            for name in (
                *("get_local_input_concurrency", "set_local_input_concurrency"),
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
    "volumes": {"/v": squall.Volume.from_id("vo-1")},
    "ephemeral_disk": 1024,
}
OF_FUNCTIONS: dict[str, Any] = {"is_generator": True, "serialized": True, "schedule": squall.Period(hours=1)}
REFUSED_PARAMETERS: dict[str, Any] = {
    "proxy": object(),
    "restrict_modal_access": True,
    "i6pn": True,
    "_experimental_restrict_output": True,
}
OF_HOSTED: dict[str, Any] = {
    "cloud": "aws",
    "region": ["eu", "us-east"],
    "routing_region": "us-east",
    "experimental_options": {"enable_gpu_snapshot": True},
}
"""What runs as well without."""


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


@pytest.mark.parametrize("name", OF_HOSTED)
def test_a_wish_about_a_providers_machines_changes_nothing_and_says_so(name: str) -> None:
    with pytest.warns(UserWarning, match=f"`{name}=` of @app.function changes nothing here: ") as told:
        squall.App().function(**{name: OF_HOSTED[name]})
    assert [each.filename for each in told] == [__file__]
    squall.App().cls(**{name: None})


def test_a_gpu_for_a_build_step_changes_nothing_and_says_so() -> None:
    base = squall.Image.debian_slim()
    for step in ("pip_install", "run_commands"):
        with pytest.warns(UserWarning, match=f"`gpu=` of Image.{step} changes nothing here: builds run without"):
            image = getattr(base, step)("x", gpu="H100")
        assert image.spec() == getattr(base, step)("x").spec()
    with pytest.warns(UserWarning, match="`memory=` of Image.run_function changes nothing here"):
        base.run_function(plain, memory=4096)
    with pytest.warns(UserWarning, match="`region=` of Image.run_function changes nothing here"):
        base.run_function(plain, region="eu")


def test_a_region_for_some_calls_changes_nothing_and_says_so() -> None:
    with pytest.warns(UserWarning, match="`region=` of with_options changes nothing here"):
        function().with_options(region="eu", timeout=5)
    with pytest.raises(TypeError, match="ephemeral_disk"):
        function().with_options(ephemeral_disk=1024)


def test_a_build_step_that_takes_no_volume_says_which_do() -> None:
    with pytest.raises(exception.UnimplementedArgument, match="`volumes=` of ") as caught:
        squall.Image.debian_slim().pip_install("x", volumes={"/v": squall.Volume.from_name("v")})
    assert "run_function" in caught.value.hint


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
def test_exceptions_of_what_squall_does_not_have_can_be_named_and_say_that_nothing_raises_them(name: str) -> None:
    found = getattr(exception, name)

    assert issubclass(found, Exception)
    assert found is getattr(exception, name)
    assert "squall does not have" in (found.__doc__ or "")


def test_naming_such_an_exception_hides_nothing_of_what_was_raised() -> None:
    def careful() -> None:
        try:
            squall.Sandbox.create("echo", app=None)
        except (exception.SandboxTimeoutError, exception.SandboxFilesystemNotFoundError):
            pytest.fail("nothing raises these")

    with pytest.raises(exception.UnimplementedError, match="Sandbox"):
        careful()


# --- what is missing, in annotations and imports ---------------------------------------------------------------------


def test_what_is_missing_may_stand_in_annotations() -> None:
    both = (squall.Sandbox | None, None | squall.Sandbox, str | squall.Sandbox)

    assert all(isinstance(one, Missing) for one in both)
    assert not isinstance(3, squall.Sandbox)


def test_a_class_of_what_is_missing_is_refused() -> None:
    with pytest.raises(exception.UnimplementedError, match="Sandbox"):

        class Mine(squall.Sandbox):  # type: ignore[misc]
            pass


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sandbox", "Sandbox"),
        ("container_process", "ContainerProcess"),
        ("stream_type", "StreamType"),
        ("io_streams", "StreamReader"),
    ],
)
def test_modules_of_what_is_missing_can_be_imported_and_say_so_when_used(module: str, name: str) -> None:
    found = getattr(importlib.import_module(f"squall.{module}"), name)

    with pytest.raises(exception.UnimplementedError, match=name):
        found.create()


def test_modules_are_reached_without_an_import_of_their_own() -> None:
    code = "import squall as m; print(m.volume.FileEntryType.FILE, m.app.App is m.App, m.mount.Mount is m.Mount)"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert said.stdout == "file True True\n"


def test_programs_can_annotate_the_batch_of_an_upload() -> None:
    batch = squall.Volume.from_name("weights").batch_upload()

    assert isinstance(batch, squall.volume.AbstractVolumeUploadContextManager)


HOMES = {
    "schedule": "Cron",
    "cloud_bucket_mount": "CloudBucketMount",
    "environments": "Environment",
    "partial_function": "enter",
    "server": "Server",
}


@pytest.mark.parametrize("module", HOMES)
def test_names_can_be_imported_from_the_modules_that_other_programs_know(module: str) -> None:
    found = getattr(importlib.import_module(f"squall.{module}"), HOMES[module])

    assert found is getattr(squall, HOMES[module])
    assert getattr(squall, module).__name__ == f"squall.{module}"


def test_types_of_what_handles_return_can_be_named() -> None:
    from squall import types

    assert types.FileEntry is squall.volume.FileEntry
    assert all(isinstance(getattr(types, name), type) for name in types.__all__)


def test_a_program_may_look_at_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_ENVIRONMENT", "dev")

    assert squall.config.config["environment"] == squall.config.config.get("environment") == "dev"
    assert squall.config.config.get("token_id", "none") == "none"
    assert squall.config._profile is None


# --- hydration -------------------------------------------------------------------------------------------------------


def test_handles_say_whether_they_were_looked_up(gateway: FakeGateway, connected: session.Session) -> None:
    app = squall.App()
    declared, looked_up = app.function()(plain), function()
    classes = [app.cls()(Model), squall.Cls.from_name("app", "C")]
    others = [squall.Dict.from_name("d"), squall.Volume.from_name("v"), squall.Secret.from_name("s")]

    assert not any(handle.is_hydrated for handle in (declared, looked_up, *classes, *others))
    with pytest.raises(exception.ExecutionError, match="has no id yet"):
        _ = classes[0].object_id
    assert squall.FunctionCall.from_id(CALL).is_hydrated
    assert squall.Image.debian_slim().is_hydrated
    assert squall.Secret.from_dict({"A": "1"}).is_hydrated
    with app.run():
        assert declared.is_hydrated
        assert classes[0].is_hydrated
        assert classes[0].object_id
        assert not looked_up.is_hydrated


def test_declared_handles_are_known_in_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    app = squall.App()
    declared, model = app.function()(plain), app.cls()(Model)
    monkeypatch.setenv("SQUALL_CONTAINER", "1")

    assert declared.is_hydrated
    assert declared.with_options(timeout=5).is_hydrated
    assert model.is_hydrated
    assert not function().is_hydrated


def test_no_gpu_may_be_said_with_false() -> None:
    squall.App().function(gpu=False)(plain)  # type: ignore[arg-type]
    with pytest.raises(exception.InvalidError, match="gpu must be text"):
        squall.App().function(gpu=True)(plain)  # type: ignore[arg-type]


def test_an_app_can_be_deployed_by_the_old_function(gateway: FakeGateway, connected: session.Session) -> None:
    from squall.runner import deploy_app

    app = squall.App("shop")
    app.function()(plain)
    with pytest.warns(DeprecationWarning, match="app.deploy"):
        result = deploy_app(app)

    assert result.app_id == app.app_id
    assert result.app_id in result.app_page_url


# --- A14: old names --------------------------------------------------------------------------------------------------

WORK_WITH_A_WARNING: dict[str, Any] = {
    "keep_warm": 1,
    "concurrency_limit": 2,
    "container_idle_timeout": 30,
    "allow_concurrent_inputs": 5,
    "max_inputs": 1,
    "secret": squall.Secret.from_name("old"),
}
OLD_KEYWORDS: dict[str, Any] = {
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


@pytest.mark.parametrize("name", ["SharedVolume", "build"])
def test_an_old_name_of_the_module_names_its_heir(name: str) -> None:
    with pytest.raises(exception.UnimplementedError, match=name) as caught:
        getattr(squall, name)()
    assert "Use " in (caught.value.hint or "")


@pytest.mark.parametrize(
    "use",
    [
        lambda: squall.Image.debian_slim().copy_local_file("a", "/b"),  # type: ignore[attr-defined]
        lambda: squall.Image.debian_slim().copy_local_dir("a", "/b"),  # type: ignore[attr-defined]
        lambda: function().call(1),  # type: ignore[attr-defined]
    ],
    ids=["copy_local_file", "copy_local_dir", "f.call"],
)
def test_an_old_member_fails_with_its_heir_named(use: Callable[[], Any]) -> None:
    with pytest.raises((exception.UnimplementedError, AttributeError)) as caught:
        use()
    said = f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert any(heir in said for heir in ("from_name", "remote", "add_local_", "get_web_url")), said


@pytest.mark.parametrize(
    ("use", "heir"),
    [
        (lambda: squall.Stub("old"), "squall.App"),
        (lambda: squall.gpu.A100(size="80GB", count=2), 'gpu="A100-80GB:2"'),
        (lambda: squall.functions.gather(), "FunctionCall.gather"),
    ],
    ids=["Stub", "gpu.A100", "functions.gather"],
)
def test_an_old_form_works_and_says_what_it_is_called_now(use: Callable[[], Any], heir: str) -> None:
    with pytest.warns(DeprecationWarning, match=re.escape(heir)):
        use()


def test_containers_do_not_repeat_what_was_said_of_declarations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert squall._absent("Stub") is squall.App
        assert squall.gpu.H100(count=2) == "H100:2"
        squall.web_endpoint(label="old")


def test_old_requests_for_gpus_are_the_text_that_they_are_now() -> None:
    with pytest.warns(DeprecationWarning, match="is written gpu="):
        requests = [squall.gpu.H100(), squall.gpu.A100(memory=40), squall.gpu.Any(count=2)]
    assert requests == ["H100", "A100-40GB", "any:2"]
    with pytest.raises(AttributeError, match="write gpu as text"):
        _ = squall.gpu.Z9000


def test_old_mounts_and_an_image_that_is_set_later_count(
    gateway: FakeGateway, connected: session.Session, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.log", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    with pytest.warns(DeprecationWarning, match="add_local_"):
        mounts = [
            squall.Mount.from_local_file(tmp_path / "a.txt", "/root/one.txt"),
            squall.Mount.from_local_dir(tmp_path, remote_path="/all", condition=lambda path: not path.endswith(".log")),
            squall.Mount.from_local_dir(tmp_path, remote_path="flat", recursive=False).add_local_file(
                tmp_path / "b.log"
            ),
        ]
    app = squall.App()
    with pytest.warns(DeprecationWarning, match="`mounts=`"):
        app.function(name="f", mounts=mounts)(plain)
    with pytest.warns(DeprecationWarning, match="App\\(image=image\\)"):
        app.image = squall.Image.debian_slim().env({"A": "1"})
    assert told(gateway, connected, app)["f"].image == app.image.spec()
    (sha256,) = {function["code"]["bundle_sha256"] for function in gateway.apps[-1]["functions"]}
    names = set(zipfile.ZipFile(io.BytesIO(gateway.blobs[sha256])).namelist())
    assert {"root/one.txt", "all/a.txt", "all/sub/c.txt", "flat/a.txt", "flat/b.log", "b.log"} <= names
    assert not {"all/b.log", "flat/sub/c.txt"} & names
    with pytest.warns(DeprecationWarning), pytest.raises(exception.InvalidError, match="takes a list"):  # noqa: PT030
        app.function(mounts=mounts[0])


# --- names that programs reach less often ----------------------------------------------------------------------------


def test_an_app_knows_what_answers_web_requests() -> None:
    app = squall.App()
    app.function(name="page")(squall.fastapi_endpoint()(lambda_free_page))
    app.function(name="plain")(plain)
    app.cls()(Site)

    assert app.registered_web_endpoints == ["page", "Site.index"]


def lambda_free_page() -> str:
    return "page"


class Site:
    """A class with a web method."""

    @squall.fastapi_endpoint()
    def index(self) -> str:
        """A page."""
        return "index"

    @squall.method()
    def other(self) -> None:
        """Not a page."""


def test_variables_of_an_image_can_be_given_by_name() -> None:
    image = squall.Image.debian_slim().env(vars={"A": "1"})
    assert image.spec() == squall.Image.debian_slim().env({"A": "1"}).spec()


def test_a_matcher_tells_its_patterns() -> None:
    assert (~squall.FilePatternMatcher("*.py", "!a.py")).patterns == ("*.py", "!a.py")


def test_options_of_volumes_that_there_are_none_of_are_refused() -> None:
    for make in (lambda given: squall.Volume.from_name("v", create_options=given), _ephemeral):
        make(None)
        make({})
        with pytest.raises(exception.UnimplementedArgument, match=r"`create_options=` .*experimental_options"):
            make({"experimental_options": {"x": 1}})


def test_progress_is_told_while_a_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squall.Volume, "read_file", lambda *_: iter([b"abc", b"d"]))
    told: list[int] = []
    target = io.BytesIO()

    volume = squall.Volume.from_id("vo-1")
    assert volume.read_file_into_fileobj("x", target, progress_cb=lambda advance: told.append(advance)) == 4
    assert (told, target.getvalue()) == ([3, 1], b"abcd")


def _ephemeral(given: Any) -> Any:
    return squall.Volume.ephemeral(create_options=given)


@pytest.mark.parametrize(
    "use",
    [
        lambda: squall.Secret.from_name("s").client.stub,  # type: ignore[attr-defined]
        lambda: squall.Secret.from_name("s").get_dashboard_url(),  # type: ignore[attr-defined]
        lambda: squall.Cls.from_name("a", "C").client.stub,
        lambda: squall.Secret.from_dotenv(client=object()),  # type: ignore[arg-type]
        lambda: squall.types.WorkspaceMemberInfo(),
    ],
    ids=["Secret.client", "Secret.page", "Cls.client", "from_dotenv(client)", "types"],
)
def test_rare_names_that_are_not_served_say_why(use: Callable[[], Any]) -> None:
    with pytest.raises(REFUSALS) as caught:
        use()
    assert caught.value.hint


def test_a_secret_has_an_id_once_it_was_looked_up() -> None:
    with pytest.raises(exception.ExecutionError, match="has no id yet"):
        _ = squall.Secret.from_name("s").object_id
    known = squall.Secret.from_name("s")
    known._id = "st-1"
    assert known.object_id == "st-1"


@pytest.mark.parametrize(
    "name",
    [
        *("workspace.Workspace", "proxy.Proxy", "snapshot.SandboxSnapshot", "tunnel.Tunnel"),
        *("scheduler_placement.SchedulerPlacement", "billing.workspace_billing_report", "object.Object"),
    ],
)
def test_modules_of_what_squall_does_not_have_say_so_when_used(name: str) -> None:
    module, _, member = name.partition(".")
    found = getattr(importlib.import_module(f"squall.{module}"), member)

    with pytest.raises(exception.UnimplementedError, match=member) as caught:
        found()
    assert caught.value.hint
    assert getattr(squall, module).__name__ == f"squall.{module}"


def test_handles_are_hydrated_without_a_client() -> None:
    handles = (
        squall.Function.from_name("a", "f"), squall.Cls.from_name("a", "C"), squall.Server.from_name("a", "S"),
        squall.Dict.from_name("d"), squall.Queue.from_name("q"), squall.Volume.from_name("v"),
        squall.Secret.from_name("s"), squall.FunctionCall.from_id(CALL),
    )  # fmt: skip
    for handle in handles:
        with pytest.raises(exception.UnimplementedArgument, match="client="):
            handle.hydrate(client=object())


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: squall.Mount.from_name("m"), "local files"),
        (lambda: squall.client.Client.from_env(), "from_env"),
        (lambda: squall.client.Client.from_credentials("a", "b"), "from_credentials"),
    ],
)
def test_names_that_make_no_sense_here_say_why(use: Callable[[], Any], words: str) -> None:
    with pytest.raises(exception.UnimplementedError, match=words) as caught:
        use()
    assert caught.value.hint


def test_options_of_an_experiment_change_nothing_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    monkeypatch.setattr(published_images, "publish", lambda _image, name, _environment: published.append(name))
    squall.Image.debian_slim().publish("plain", experimental_options=None)
    with pytest.warns(UserWarning, match="experimental_options"):
        squall.Image.debian_slim().publish("tried", experimental_options={"x": 1})
    assert published == ["plain", "tried"]


def test_progress_is_told_of_files_of_a_file_system() -> None:
    told: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def bar(*args: Any, **kwargs: Any) -> str:
        told.append((args, kwargs))
        return "bar"

    changes = [{"path": "/a", "file": {"size": 3}}]
    network_file_system._told(bar, changes)
    network_file_system._told(None, changes)
    assert told == [((), {"name": "/a", "size": 3}), (("bar",), {"advance": 3}), (("bar",), {"complete": True})]


def test_profiles_can_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUALL_HOME", str(tmp_path))
    assert squall.config.config_profiles() == []
    (tmp_path / "config.toml").write_text('server_url = "http://a"\n[work]\ntoken = "t"\n[home]\n')
    assert squall.config.config_profiles() == ["work", "home"]


def test_a_preemption_is_simulated() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        exception.simulate_preemption(0)
    refused: list[BaseException] = []

    def elsewhere() -> None:
        try:
            exception.simulate_preemption(5)
        except exception.InvalidError as error:
            refused.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(refused) == 1
    before = signal.getsignal(signal.SIGALRM)
    try:
        exception.simulate_preemption(1)
        with pytest.raises(KeyboardInterrupt, match="preemption"):
            threading.Event().wait(60)
        assert 0 < signal.alarm(0) <= 30, "the second one, when a container would be killed"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
