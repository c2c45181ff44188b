"""How declarations travel: any of them as a JSON-able dict, and back.

Unknown fields are ignored on the way back, so an older reader understands a newer writer.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from squall.errors import InvalidError

T = TypeVar("T")
UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))
"""`Optional[X]`, and `X | None` as services write it."""


def to_wire(value: Any) -> Any:
    """Dataclasses, enums, tuples and mappings as JSON-able values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_wire(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_wire(item) for key, item in value.items()}
    return value


def from_wire(cls: type[T], body: Mapping[str, Any]) -> T:
    """The `cls` that `to_wire` described. Raises `InvalidError` naming a missing field or a wrong type."""
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable; mypy doubts type[T]
    values: dict[str, Any] = {}
    for spec_field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if spec_field.name in body:
            values[spec_field.name] = _decode(
                hints[spec_field.name], body[spec_field.name], f"{cls.__name__}.{spec_field.name}"
            )
    try:
        return cls(**values)
    except TypeError as error:
        raise InvalidError(f"{cls.__name__}: {error}") from error


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return None if value is None else _decode(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        _expect(isinstance(value, (list, tuple)), "a list", value, where)
        return tuple(_decode(arguments[0], item, where) for item in value)
    if origin is not None and isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        _expect(isinstance(value, dict), "an object", value, where)
        return dict(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        _expect(isinstance(value, dict), "an object", value, where)
        return from_wire(hint, value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        _expect(value in [member.value for member in hint], f"one of {[m.value for m in hint]}", value, where)
        return hint(value)
    if hint is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, where)
        return float(value)
    if hint in (int, str, bool, bytes):
        _expect(
            isinstance(value, hint) and not (hint is int and isinstance(value, bool)),
            f"of type {hint.__name__}",
            value,
            where,
        )
    return value


def _expect(valid: bool, wanted: str, value: Any, where: str) -> None:
    if not valid:
        raise InvalidError(f"{where} must be {wanted}, got {value!r}")


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a JSON-able value."""
    import hashlib  # reads OpenSSL's settings: not in interpreters that learn their variables later

    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
