"""What may be declared: which objects can be functions of an app, and what apps and functions may be called."""

from __future__ import annotations

from typing import Any

from squall.cls import Cls
from squall.errors import InvalidError
from squall.function import Function


def check_function(raw: Any, serialized: bool) -> None:
    """Raise unless it is a plain function that a container can find."""
    if isinstance(raw, (Function, Cls)):
        raise InvalidError("@app.function is applied twice", fix="Remove one of them, or give the plain function.")
    if isinstance(raw, type):
        raise TypeError("@app.function decorates functions; use @app.cls for classes")
    if not callable(raw) or not hasattr(raw, "__qualname__") or not hasattr(raw, "__code__"):
        raise InvalidError(
            f"@app.function decorates plain functions, got {type(raw).__name__}", fix="Wrap it in a `def`."
        )
    if hasattr(raw, "__squall_method__") or hasattr(raw, "__squall_hook__"):
        raise InvalidError(
            f"{raw.__qualname__} is marked as part of a class", fix="Use @app.cls on the class, without @app.function."
        )
    if serialized:
        return  # wherever it is defined
    check_not_nested(raw)
    if "." in raw.__qualname__:
        raise InvalidError(
            f"{raw.__qualname__} is a method", fix="Use @app.cls on the class and @squall.method() on the method."
        )


def check_not_nested(raw: Any) -> None:
    """Raise for what is defined inside another function."""
    if "<locals>" in raw.__qualname__:
        raise InvalidError(
            f"{raw.__qualname__} is defined inside another function, where a container cannot import it",
            fix="Move it to the top level of its file, or declare a function with `serialized=True`.",
        )


def check_object_name(name: str) -> None:
    """Raise for a name that no function or class can have."""
    from squall.ids import check_name

    check_name(name, "function")


def check_app_name(name: str) -> None:
    """Raise for a name that no app can have."""
    from squall.ids import check_name

    if not isinstance(name, str):
        raise InvalidError(f"the app's name must be text, got {name!r}")
    check_name(name, "app")
