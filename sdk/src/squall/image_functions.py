"""Functions that run while an image is built: `Image.run_function`.

Owns what such a step depends on: the function's own source, the globals that it names, and its arguments. The rest of
its file travels with it and rebuilds nothing.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import pickle
import textwrap
from collections.abc import Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any, Callable

from squall.errors import InvalidError
from squall.image_files import Copied

MAX_ARGUMENT_BYTES = 2 * 1024 * 1024


def step(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], include: bool) -> dict[str, Any]:
    """The arguments of the step. Raises `InvalidError` for what a builder could not find."""
    if not isinstance(function, FunctionType) or "<" in function.__qualname__ or "." in function.__qualname__:
        raise InvalidError(
            f"run_function needs a function at the top level of a file, got {function!r}",
            fix="Define it there, without decorators of an app.",
        )
    given = _arguments(args, kwargs)
    key = hashlib.sha256(given)
    key.update("\n".join(described(function, set())).encode())
    arguments: dict[str, Any] = {
        "function": function.__qualname__,
        "arguments": base64.b64encode(given).decode(),
        "source_key": key.hexdigest(),
        "_module": _module(function, include),
    }
    if include:
        arguments["_code"] = Copied(lambda: _files(function))
    return arguments


def _arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    try:
        given = pickle.dumps((tuple(args), dict(kwargs)), protocol=4)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise InvalidError(f"the arguments of run_function cannot be pickled: {error}") from error
    if len(given) > MAX_ARGUMENT_BYTES:
        raise InvalidError(
            f"the arguments of run_function have {len(given)} bytes, at most {MAX_ARGUMENT_BYTES} are possible",
            fix="Copy large data with `add_local_file(copy=True)`.",
        )
    return given


def described(function: FunctionType, seen: set[str]) -> list[str]:
    """The source of a function and of the functions and values of its module that it uses."""
    name = f"{function.__module__}.{function.__qualname__}"
    if name in seen:
        return []
    seen.add(name)
    try:
        found = [name, textwrap.dedent(inspect.getsource(function))]
    except (OSError, TypeError):
        raise InvalidError(f"the source of {name} is not known", fix="Put it into a file.") from None
    for used in sorted(_names(function.__code__)):
        if used in function.__globals__:
            value = function.__globals__[used]
            if isinstance(value, FunctionType) and value.__module__ == function.__module__:
                found += described(value, seen)
            else:
                found.append(f"{used} = {_value(value)}")
    return found


def _names(code: CodeType) -> set[str]:
    """Global names that a function uses, those of functions inside of it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _value(value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    with contextlib.suppress(OSError, TypeError):  # a class: by its source, as functions are
        return inspect.getsource(value)
    if isinstance(value, (str, bytes, int, float, bool, type(None), tuple, list, dict)):
        return repr(value)
    return f"a {type(value).__qualname__}"  # its address must not become a part of the key


def _module(function: FunctionType, include: bool) -> str:
    from squall import bundle

    return bundle.source_of(function, include).module


def _files(function: FunctionType) -> dict[str, str]:
    from squall import bundle

    return bundle.source_of(function, True).files
