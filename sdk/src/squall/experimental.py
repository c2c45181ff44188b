"""Names that programs import from here. squall has one of them; the others say so, and what to use, when it is used."""

from __future__ import annotations

from typing import Any

from squall.served import http_server as http_server
from squall.unimplemented import Missing

SEVERAL_GPUS = 'Ask for several GPUs of one machine with `gpu="H100:8"`.'
INSTEAD = {
    "stop_fetching_inputs": "`single_use_containers=True` ends a container after one input.",
    "get_local_input_concurrency": "Read what `@squall.concurrent(max_inputs=...)` says from a constant of your own.",
    "set_local_input_concurrency": "Use `@squall.concurrent(max_inputs=...)`.",
    "clustered": SEVERAL_GPUS,
    "get_cluster_info": SEVERAL_GPUS,
    "list_deployed_apps": "Use `squall app list --json`.",
    "stop_app": "Use `squall.App.lookup(name).stop()`.",
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # the import system and inspect ask for special names
        raise AttributeError(f"module 'squall.experimental' has no attribute {name!r}")
    return Missing(f"squall.experimental.{name}", INSTEAD.get(name, "The stable names of `squall` are what there is."))
