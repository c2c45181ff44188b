"""What squall does not have yet: every name exists, and using it says so and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

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

    def __repr__(self) -> str:
        return f"<{self._name}: not in this squall>"


VALUES_INSTEAD = "Keep files in a `squall.Volume` (`read_file`, `batch_upload`), or pass them as arguments and results."
WEB_INSTEAD = "Use `@squall.web_server(port)` on a function that starts the server."

TOP_LEVEL: dict[str, str] = {
    "CloudBucketMount": VALUES_INSTEAD,
    "NetworkFileSystem": VALUES_INSTEAD,
    "Sandbox": "Run commands with subprocess inside a function.",
    "SandboxSnapshot": "Run commands with subprocess inside a function.",
    "Probe": "Run commands with subprocess inside a function.",
    "Proxy": "Route the machines of your nodes as you need it.",
    "Server": WEB_INSTEAD,
    "Tunnel": WEB_INSTEAD,
    "Cluster": 'Ask for several GPUs of one machine with `gpu="H100:8"`.',
    "Client": "Set SQUALL_SERVER_URL and SQUALL_TOKEN.",
    "Environment": "Choose the environment with SQUALL_ENVIRONMENT or `environment_name=`.",
    "Workspace": "A token belongs to one workspace.",
    "SchedulerPlacement": "Ask for `gpu=`, `cpu=` and `memory=`; the scheduler chooses the machine.",
    "FilePatternMatcher": "Give `ignore=` a list of dockerignore patterns or a function of the path.",
    "clustered": 'Ask for several GPUs of one machine with `gpu="H100:8"`.',
    "sessioned": WEB_INSTEAD,
    "forward": WEB_INSTEAD,
    "interact": "Run the function on your machine with `.local()` to debug it.",
    "experimental": "The stable names of `squall` are what there is.",
    "billing": "squall runs on your machines; there is no bill.",
}

FUNCTION_KEYWORDS: dict[str, tuple[tuple[Any, ...], str]] = {
    # name: (values that mean "not used", what to do instead)
    "volumes": ((None, {}), "Read and write files in the function, with `volume.read_file` and `batch_upload`."),
    "network_file_systems": ((None, {}), VALUES_INSTEAD),
    "serialized": ((False, None), "Define the function at the top level of a file."),
    "ephemeral_disk": ((None,), "Remove it: containers use the disk of their machine."),
    "proxy": ((None,), "Remove it: containers use the network of their machine."),
    "cloud": ((None,), "Remove it: containers run on your own machines."),
    "region": ((None,), "Remove it: this squall has one region."),
    "routing_region": ((None,), "Remove it: this squall has one region."),
    "restrict_modal_access": ((False, None), "Remove it."),
    "i6pn": ((None, False), "Remove it: containers use the network of their machine."),
    "experimental_options": ((None, {}), "Remove it: there are no experimental options."),
    "cpu_limit": ((None,), "Write `cpu=(request, limit)`."),
}

RENAMED: Mapping[str, str] = {
    "secret": "`secrets=[...]`",
    "checkpointing_enabled": "`enable_memory_snapshot=`",
    "mounts": "`Image.add_local_file`, `add_local_dir` and `add_local_python_source`",
    "interactive": "`.local()` for debugging",
}

RENAMED_TOP_LEVEL: Mapping[str, str] = {
    "Stub": "squall.App",
    "Mount": "Image.add_local_file, add_local_dir and add_local_python_source",
    "SharedVolume": "arguments and results",
    "build": "@squall.enter",
    "gpu": 'a string such as gpu="H100:8"',
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


def missing_classmethods(owner: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Several of them, by name."""
    return {name: Missing(f"{owner}.{name}", instead) for name, instead in names.items()}
