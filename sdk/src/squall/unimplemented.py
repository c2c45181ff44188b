"""What squall does not have yet: every name exists, and using it says so and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NoReturn

from squall.errors import DeprecationError, UnimplementedArgument, UnimplementedError


class Missing:
    """A public name without an implementation. Whatever is done with it raises `UnimplementedError`."""

    def __init__(self, name: str, instead: str) -> None:
        self._name = name
        self._instead = instead

    def _refuse(self) -> NoReturn:
        raise UnimplementedError(f"squall does not have {self._name} yet", fix=self._instead)

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self._refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy, pickle and inspect ask for special names
            raise AttributeError(name)
        self._refuse()

    def __or__(self, _other: Any) -> Missing:
        return self  # `squall.Sandbox | None` in an annotation uses nothing yet

    __ror__ = __or__

    def __instancecheck__(self, _instance: Any) -> bool:
        return False

    def __mro_entries__(self, _bases: Any) -> NoReturn:
        self._refuse()

    def __repr__(self) -> str:
        return f"<{self._name}: not in this squall>"


class Gone(Missing):
    """A name of long ago. It can be imported, so that its use, not the import, says what took its place."""

    def _refuse(self) -> NoReturn:
        raise UnimplementedError(f"{self._name} is an old name, and squall has only the new one", fix=self._instead)

    def __repr__(self) -> str:
        return f"<{self._name}: an old name>"


WEB_INSTEAD = "Use `@squall.web_server(port)` on a function that starts the server."

SANDBOX_INSTEAD = (
    "Run commands with subprocess inside a function; "
    "`single_use_containers=True` gives each call a container of its own."
)

NO_CLIENT = "Set SQUALL_SERVER_URL and SQUALL_TOKEN: a program has one server."
NO_PAGE = "The server has no pages for people: `squall status` and `squall app list` show what it has."

TOP_LEVEL: dict[str, str] = {
    "Sandbox": SANDBOX_INSTEAD,
    "SandboxSnapshot": SANDBOX_INSTEAD,
    "Probe": SANDBOX_INSTEAD,
    "Proxy": "Route the machines of your nodes as you need it.",
    "Tunnel": WEB_INSTEAD,
    "Cluster": 'Ask for several GPUs of one machine with `gpu="H100:8"`.',
    "Client": NO_CLIENT,
    "Workspace": "A token belongs to one workspace.",
    "SchedulerPlacement": "Ask for `gpu=`, `cpu=` and `memory=`; the scheduler chooses the machine.",
    "clustered": 'Ask for several GPUs of one machine with `gpu="H100:8"`.',
    "sessioned": WEB_INSTEAD,
    "forward": WEB_INSTEAD,
    "interact": "Run the function on your machine with `.local()` to debug it.",
}

FUNCTION_KEYWORDS: dict[str, tuple[tuple[Any, ...], str]] = {
    # name: (values that mean "not used", what to do instead)
    "serialized": ((False, None), "Define the function at the top level of a file."),
    "proxy": ((None,), "Remove it: containers use the network of their machine."),
    "restrict_modal_access": ((False, None), "Remove it."),
    "i6pn": ((None, False), "Remove it: containers use the network of their machine."),
    "cpu_limit": ((None,), "Write `cpu=(request, limit)`."),
    "_experimental_restrict_output": ((False, None), "Return JSON text from functions whose code you do not trust."),
}

RENAMED: Mapping[str, str] = {
    "checkpointing_enabled": "`enable_memory_snapshot=`",
    "interactive": "`.local()` for debugging",
    "rate_limit": "`max_containers=`",
    "shared_volumes": "`volumes=`",
}

_STORED = "Use `{0}.from_name(name, create_if_missing=True)`, or `{0}.ephemeral()` for the time of a `with` block."
CONDA_INSTEAD = (
    "Install from Python's index with `pip_install`, or start `Image.from_registry` with an image that has micromamba "
    "and use `run_commands`: squall has no packages of conda of its own."
)
_WEB = "Use `@app.function()` above `@squall.{0}()`."

OLD_NAMES: Mapping[str, Mapping[str, str]] = {
    # owner ("" is the module itself): old name: what to do instead
    "": {
        "SharedVolume": "Use `squall.Volume.from_name(name, create_if_missing=True)`.",
        "build": "Use `Image.run_function` for work that belongs into the image, or `@squall.enter()`.",
        "create_package_mounts": "Use `Image.add_local_python_source`.",
        "aio": "Use `.aio` of each method, such as `f.remote.aio(...)`.",
        "container_app": "Use the functions of the module by their names.",
        "asgi": _WEB.format("asgi_app"),
        "wsgi": _WEB.format("wsgi_app"),
        "webhook": _WEB.format("fastapi_endpoint"),
        "lookup": "Use `squall.Function.from_name(app, name)`.",
        "ref": "Use `from_name` of the class that is wanted.",
        "Conda": CONDA_INSTEAD,
        "DebianSlim": "Use `squall.Image.debian_slim()`.",
        "DockerhubImage": "Use `squall.Image.from_registry(tag)`.",
        "RateLimit": "Use `max_containers=`.",
    },
    "App": {
        "asgi": _WEB.format("asgi_app"),
        "wsgi": _WEB.format("wsgi_app"),
        "webhook": _WEB.format("fastapi_endpoint"),
        "generator": "Use `@app.function()` on a generator.",
        "schedule": "Use `@app.function(schedule=...)`.",
        "local_function": "Use a plain function.",
        "is_inside": "Use `squall.is_local()`, or `with image.imports():` around imports.",
        "interactive_shell": "Use `squall container exec`.",
        "serve": "Use `squall serve FILE`.",
    },
    "Cls": {"remote": "Write `Class(...)`: an instance is made without a call."},
    "Dict": {"new": _STORED.format("squall.Dict")},
    "Function": {
        "call": "Use `.remote()`.",
        "enqueue": "Use `.spawn()`.",
        "keep_warm": "Use `update_autoscaler(min_containers=...)`.",
        "num_idle_workers": "Use `get_current_stats()`.",
        "shell": "Use `squall container exec`.",
        "submit": "Use `.spawn()`.",
    },
    "Image": {
        **dict.fromkeys(("conda", "conda_install", "conda_update_from_environment"), CONDA_INSTEAD),
        **dict.fromkeys(
            ("copy_local_file", "copy_local_dir", "copy_mount"), "Use `add_local_file` or `add_local_dir`."
        ),
        "extend": "Use `dockerfile_commands` or `run_commands`.",
        "from_dockerhub": "Use `Image.from_registry(tag)`.",
        "run_inside": "Use `with image.imports():`.",
    },
    "Queue": {"new": _STORED.format("squall.Queue")},
    "Secret": {"new": "Use `squall.Secret.from_dict(...)`."},
    "Volume": {"new": _STORED.format("squall.Volume")},
}


def refuse_keywords(where: str, keywords: Mapping[str, Any], known: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raise for every keyword that is left: not built, renamed or unknown. A value that means "not used" is fine."""
    for name, value in keywords.items():
        if name in known:
            unused, instead = known[name]
            if not any(value is nothing or (type(value) is type(nothing) and value == nothing) for nothing in unused):
                raise UnimplementedArgument(f"squall does not have `{name}=` of {where} yet", fix=instead)
        elif name in RENAMED:
            raise DeprecationError(f"`{name}=` of {where} has been replaced by {RENAMED[name]}")
        else:
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}")


def missing_method(name: str, instead: str) -> Any:
    """A method that is not built: calling it, or its `.aio`, raises `UnimplementedError`."""
    return Missing(name, instead)


def absent_module(module: str, instead: Mapping[str, str], otherwise: str) -> Callable[[str], Any]:
    """`__getattr__` of a module whose names can be imported, and say what to do instead when they are used."""

    def find(name: str) -> Any:
        if name.startswith("__"):  # the import system and inspect ask for special names
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return Missing(f"{module}.{name}", instead.get(name, otherwise))

    return find


def missing_classmethods(owner: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Several of them, by name; and those of long ago."""
    old = {name: Gone(f"{owner}.{name}", instead) for name, instead in OLD_NAMES.get(owner, {}).items()}
    return {**old, **{name: Missing(f"{owner}.{name}", instead) for name, instead in names.items()}}
