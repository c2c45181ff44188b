"""squall: serverless Python functions on machines you own.

    import squall

    app = squall.App("hello")

    @app.function()
    def square(x: int) -> int:
        return x * x

    @app.local_entrypoint()
    def main() -> None:
        print(square.remote(7), list(square.map(range(5))))

Names are loaded when they are first used: `import squall` is part of every cold start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from squall import errors as exception  # noqa: F401
    from squall.app import App as App
    from squall.bucket import CloudBucketMount as CloudBucketMount
    from squall.call import FunctionCall as FunctionCall
    from squall.cls import Cls as Cls
    from squall.dict import Dict as Dict
    from squall.errors import Error as Error
    from squall.function import Function as Function
    from squall.image import Image as Image
    from squall.markers import batched as batched
    from squall.markers import concurrent as concurrent
    from squall.markers import enter as enter
    from squall.markers import exit as exit
    from squall.markers import method as method
    from squall.markers import parameter as parameter
    from squall.mounts import Mount as Mount
    from squall.network_file_system import NetworkFileSystem as NetworkFileSystem
    from squall.output import enable_output as enable_output
    from squall.patterns import FilePatternMatcher as FilePatternMatcher
    from squall.place import current_function_call_id as current_function_call_id
    from squall.place import current_input_id as current_input_id
    from squall.place import is_local as is_local
    from squall.queue import Queue as Queue
    from squall.retries import Retries as Retries
    from squall.schedules import Cron as Cron
    from squall.schedules import Period as Period
    from squall.secret import Secret as Secret
    from squall.server import Server as Server
    from squall.volume import Volume as Volume
    from squall.web import asgi_app as asgi_app
    from squall.web import fastapi_endpoint as fastapi_endpoint
    from squall.web import web_endpoint as web_endpoint
    from squall.web import web_server as web_server
    from squall.web import wsgi_app as wsgi_app

_HOMES = {
    "App": "squall.app",
    "CloudBucketMount": "squall.bucket",
    "Cls": "squall.cls",
    "Cron": "squall.schedules",
    "Dict": "squall.dict",
    "Environment": "squall.environment",
    "Error": "squall.errors",
    "FilePatternMatcher": "squall.patterns",
    "Function": "squall.function",
    "FunctionCall": "squall.call",
    "Image": "squall.image",
    "Mount": "squall.mounts",
    "NetworkFileSystem": "squall.network_file_system",
    "Period": "squall.schedules",
    "Queue": "squall.queue",
    "Retries": "squall.retries",
    "Secret": "squall.secret",
    "Server": "squall.server",
    "asgi_app": "squall.web",
    "Volume": "squall.volume",
    "batched": "squall.markers",
    "concurrent": "squall.markers",
    "current_function_call_id": "squall.place",
    "current_input_id": "squall.place",
    "enable_output": "squall.output",
    "enter": "squall.markers",
    "exit": "squall.markers",
    "fastapi_endpoint": "squall.web",
    "is_local": "squall.place",
    "method": "squall.markers",
    "parameter": "squall.markers",
    "web_endpoint": "squall.web",
    "web_server": "squall.web",
    "wsgi_app": "squall.web",
}
_MODULES = ("exception", "experimental", "functions", "gpu", "queue")
_SUBMODULES = (
    *("billing", "object", "proxy", "scheduler_placement", "snapshot", "tunnel", "workspace"),
    *("app", "call_graph", "cloud_bucket_mount", "cls", "config", "container_process", "dict", "environments"),
    *("file_pattern_matcher", "image", "io_streams", "mount", "network_file_system", "output", "partial_function"),
    *("retries", "runner", "sandbox", "schedule", "secret", "server", "stream_type", "types", "volume"),
)
"""Reached as `squall.volume.FileEntryType`, without an import of their own; not part of `import *`."""

__all__ = [*sorted(_HOMES), *_MODULES, "__version__"]  # noqa: PLE0604 - the names are text


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES or name in _SUBMODULES:
        value = importlib.import_module(f"squall.{name}")
    else:
        value = _absent(name)
    globals()[name] = value
    return value


def _absent(name: str) -> Any:
    # Not `from squall import unimplemented`: that form asks this function first.
    from squall.unimplemented import OLD_NAMES, TOP_LEVEL, Gone, Missing

    if name == "Stub":
        from squall.app import App
        from squall.old_names import warn_renamed

        warn_renamed("squall.Stub is called squall.App now", declaring=True)
        return App
    if name in TOP_LEVEL:
        return Missing(f"squall.{name}", TOP_LEVEL[name])
    if name in OLD_NAMES[""]:  # not an AttributeError: `from squall import build` would lose its text
        return Gone(f"squall.{name}", OLD_NAMES[""][name])
    raise AttributeError(f"module 'squall' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
