"""Values and bytes: arguments in, results out, in the three encodings.

Content of an argument payload: (args, kwargs); in JSON and msgpack {"args": [...], "kwargs": {...}}. Content
of a result payload: the value. The picklers that are not in the standard library are imported when a value
needs them.
"""

from __future__ import annotations

import copyreg
import importlib
import io
import json
import pickle
import types
from collections.abc import Callable
from typing import Any

PROTOCOL = 4  # read by every Python since 3.4: container and caller may differ


def decode_arguments(encoding: str, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs). Raises whatever the decoder raises, and `ValueError` for content of another shape."""
    content = _DECODERS[encoding](data)
    if isinstance(content, dict) and encoding != "pickle":
        content = (content.get("args", ()), content.get("kwargs", {}))
    if not isinstance(content, tuple) or len(content) != 2:
        raise ValueError("the payload is not (args, kwargs)")
    args, kwargs = content
    return tuple(args), dict(kwargs)


def encode_value(encoding: str, value: Any) -> bytes:
    """The bytes of a result or item. Raises whatever the encoder raises."""
    return _ENCODERS[encoding](value)


def dump_exception(error: BaseException) -> bytes:
    """The exception with its causes, pickled. Raises if it cannot be pickled, or not loaded again."""
    data = _pickle_with(_ExceptionPickler, error, fallback=_cloud_exception_pickler)
    pickle.loads(data)  # what cannot be loaded again fails only here  # noqa: S301
    return data


def _pickle(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=PROTOCOL)
    except Exception as first:  # noqa: BLE001  # __reduce__ of any class may raise anything
        return _cloudpickle_or(first, value)


def _cloudpickle_or(first: Exception, value: Any) -> bytes:
    try:
        cloudpickle = importlib.import_module("cloudpickle")
    except ImportError:
        raise first from None
    data: bytes = cloudpickle.dumps(value, protocol=PROTOCOL)
    return data


def _json(value: Any) -> bytes:
    # NaN is not JSON: no other language's parser would take it.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _unjson(data: bytes) -> Any:
    return json.loads(data)


def _msgpack(value: Any) -> bytes:
    data: bytes = importlib.import_module("msgpack").packb(value, use_bin_type=True)
    return data


def _unmsgpack(data: bytes) -> Any:
    return importlib.import_module("msgpack").unpackb(data, raw=False, strict_map_key=False)


_DECODERS: dict[str, Callable[[bytes], Any]] = {"pickle": pickle.loads, "json": _unjson, "msgpack": _unmsgpack}
_ENCODERS: dict[str, Callable[[Any], bytes]] = {"pickle": _pickle, "json": _json, "msgpack": _msgpack}


# --- exceptions


def _reduce_exception(error: BaseException) -> Any:
    """As pickle would, plus `__cause__`, `__context__` and notes, which it drops.

    `BaseException.__setstate__` sets attributes by name, so plain `pickle.loads` restores them.
    """
    reduced = error.__reduce_ex__(PROTOCOL)
    plain = type(error).__setstate__ is BaseException.__setstate__
    if not isinstance(reduced, tuple) or len(reduced) > 3 or not plain:
        return NotImplemented
    state = dict(reduced[2]) if len(reduced) == 3 and reduced[2] else {}
    if error.__cause__ is not None:
        state["__cause__"] = error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__:
        state["__context__"] = error.__context__
    make, arguments = reduced[0], reduced[1]
    if make is type(error) and isinstance(type(error).__init__, types.FunctionType):
        # An __init__ of the user may take other arguments than `args`: not run again, its attributes are copied.
        make, arguments = copyreg.__newobj__, (type(error), *arguments)  # type: ignore[attr-defined]
    return (make, arguments, state) if state else (make, arguments)


class _ExceptionPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return _reduce_exception(obj) if isinstance(obj, BaseException) else NotImplemented


def _cloud_exception_pickler() -> type[pickle.Pickler]:
    base: Any = importlib.import_module("cloudpickle").Pickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException):
                return _reduce_exception(obj)
            return super().reducer_override(obj)

    return Pickler


def _pickle_with(pickler: type[pickle.Pickler], value: Any, fallback: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        pickler(buffer, protocol=PROTOCOL).dump(value)
    except Exception:  # noqa: BLE001  # as in _pickle
        buffer = io.BytesIO()
        fallback()(buffer, protocol=PROTOCOL).dump(value)
    return buffer.getvalue()
