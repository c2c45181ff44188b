"""Names that programs import from here. The others say so, and what to use instead, when used."""

from __future__ import annotations

from typing import Any

from squall.errors import InvalidError
from squall.place import is_local
from squall.served import http_server as http_server
from squall.unimplemented import Missing

SEVERAL_GPUS = 'Ask for several GPUs of one machine with `gpu="H100:8"`.'
INSTEAD = {
    "get_local_input_concurrency": "Read what `@squall.concurrent(max_inputs=...)` says from a constant of your own.",
    "set_local_input_concurrency": "Use `@squall.concurrent(max_inputs=...)`.",
    "clustered": SEVERAL_GPUS,
    "get_cluster_info": SEVERAL_GPUS,
    "list_deployed_apps": "Use `squall app list --json`.",
    "stop_app": "Use `squall.App.lookup(name).stop()`.",
}


def stop_fetching_inputs() -> None:
    """Have no more inputs given to the container that this code runs in: it ends when those that it has have ended,
    after its `@exit` hooks. For code that has seen that its container must not be used again. Outside of a container
    nothing happens. Raises `InvalidError` in a subprocess, which has no inputs."""
    from squall_runner import context

    if not is_local() and not context.stop_fetching_inputs():
        raise InvalidError(
            "stop_fetching_inputs() was called in a process that gets no inputs",
            fix="Call it from the function itself.",
        )


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # the import system and inspect ask for special names
        raise AttributeError(f"module 'squall.experimental' has no attribute {name!r}")
    return Missing(f"squall.experimental.{name}", INSTEAD.get(name, "The stable names of `squall` are what there is."))
