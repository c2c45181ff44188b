"""Calls in JSON, as they come: the body of a request, the function that its path names, class parameters.

Checks and turns into what the call path takes; looks nothing up but the function, accepts nothing.
"""

from __future__ import annotations

import asyncio
import binascii
import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import InvalidError, NotFoundError, RequestSizeError
from squall.http_api.protocol import MAX_HEADER_PARAMETERS_BYTES, encode_parameters
from squall.spec import CHUNK_INPUTS, FunctionSpec, ParameterSpec

MAX_BODY_BYTES = 16 << 20
"""Larger arguments belong in a file or behind a URL that the function reads: they are parsed here."""
THREAD_BYTES = 256 << 10
"""A body above this is parsed in a thread (1 MiB takes 10 ms)."""
MAX_INPUTS = CHUNK_INPUTS
"""One atomic write: a request is taken as a whole or not at all."""
CALL_FIELDS = ("args", "kwargs", "parameters", "webhook")
MAP_FIELDS = ("inputs", "kwargs", "parameters", "webhook")


@dataclass(frozen=True, slots=True)
class JsonCall:
    """What a body asks for."""

    payloads: Sequence[bytes]
    """One for each input: `{"args": [...], "kwargs": {...}}`, as the runner reads it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    many: bool = False
    """It has `inputs`, be it only one."""
    webhook: str = ""
    """In place of the function's."""


@dataclass(frozen=True, slots=True)
class Named:
    """A function or method as a path names it."""

    function: str
    method: str


async def read(body: bytes, fields: Sequence[str]) -> JsonCall:
    """The call in a body; `fields` are those that may be there. Raises `InvalidError`, `RequestSizeError`."""
    if len(body) > THREAD_BYTES:
        return await asyncio.to_thread(parse, body, fields)
    return parse(body, fields)


def parse(body: bytes, fields: Sequence[str]) -> JsonCall:
    """The same, at once."""
    found = loaded(body)
    if not isinstance(found, dict):
        raise InvalidError(f"the body is {_kind(found)}, not an object", fix=_fix(fields))
    if unknown := sorted(found.keys() - set(fields)):
        raise InvalidError(f"the body has an unknown field {unknown[0]!r}", fix=_fix(fields))
    parameters = _expect(found.get("parameters", {}), dict, "parameters")
    kwargs = _expect(found.get("kwargs", {}), dict, "kwargs")
    webhook = _expect(found.get("webhook", ""), str, "webhook")
    if "inputs" not in found:
        if "args" not in fields:
            raise InvalidError("the body has no `inputs`", fix=_fix(fields))
        return JsonCall([_payload(_expect(found.get("args", []), list, "args"), kwargs)], parameters, webhook=webhook)
    if "args" in found:
        raise InvalidError("the body has both `args` and `inputs`", fix="Put the arguments into `inputs`.")
    inputs = _expect(found["inputs"], list, "inputs")
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise RequestSizeError(
            f"{len(inputs)} inputs in one request; 1 to {MAX_INPUTS} are possible", fix="Make several requests."
        )
    payloads = [_of_input(each, number, kwargs) for number, each in enumerate(inputs)]
    return JsonCall(payloads, parameters, many=True, webhook=webhook)


def loaded(body: bytes) -> Any:
    """The JSON in a body; an empty one is an empty object. Raises `InvalidError`."""
    if not body:
        return {}
    try:
        return json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidError("the body is nested too deeply", fix="Send flatter values.") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidError(f"the body is not JSON: {error}", fix="Send UTF-8 JSON.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; send null or a string")


def _of_input(given: Any, number: int, shared: Mapping[str, Any]) -> bytes:
    """One element of `inputs`: positional arguments, or an object with both kinds."""
    if isinstance(given, list):
        return _payload(given, shared)
    if not isinstance(given, dict) or given.keys() - {"args", "kwargs"}:
        raise InvalidError(
            f"inputs[{number}] is neither a list of arguments nor an object of `args` and `kwargs`",
            fix='Write [[1], [2]] or [{"args": [1], "kwargs": {"x": 2}}].',
        )
    args = _expect(given.get("args", []), list, f"inputs[{number}].args")
    own = _expect(given.get("kwargs", {}), dict, f"inputs[{number}].kwargs")
    return _payload(args, {**shared, **own})


def _payload(args: Any, kwargs: Any) -> bytes:
    return json.dumps({"args": args, "kwargs": kwargs}, separators=(",", ":")).encode()


def _expect(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise InvalidError(f"`{what}` is {_kind(value)}, not {wanted}")
    return value


_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")


def _fix(fields: Sequence[str]) -> str:
    return f"The fields are {', '.join(fields)}; docs/howto/call-from-any-language.md has examples."


# ---------------------------------------------------------------------- what the path names


def named(path: str, functions: Mapping[str, str], app: str) -> Named:
    """`name`, or `Class.method`. Raises `NotFoundError`."""
    if path in functions:
        return Named(path, "")
    owner, dot, method = path.rpartition(".")
    if dot and owner in functions:
        return Named(owner, method)
    there = ", ".join(sorted(functions)[:10]) or "none"
    raise NotFoundError(f"app {app!r} has no function {path!r}", fix=f"Its functions: {there}.")


def check_method(spec: FunctionSpec, method: str) -> None:
    """Raises `InvalidError` when a class comes without a method, or a function with one."""
    names = [each.name for each in spec.methods]
    if method in names:
        return
    if method:
        raise NotFoundError(f"{spec.name!r} has no method {method!r}", fix=f"It has: {', '.join(filter(None, names))}.")
    ways = ", ".join(f"{spec.name}.{name}" for name in names)
    raise InvalidError(f"{spec.name!r} is a class: the path must name a method of it", fix=f"Name one of: {ways}.")


def class_parameters(spec: FunctionSpec, given: Mapping[str, Any]) -> str:
    """Class parameters as they travel, defaults included as in the SDK, so that both mean the same pool.

    Raises `InvalidError`, `RequestSizeError`."""
    declared = {parameter.name: parameter for parameter in spec.parameters}
    if unknown := sorted(given.keys() - declared.keys()):
        has = ", ".join(declared) or "none"
        raise InvalidError(f"{spec.name!r} has no parameter {unknown[0]!r}", fix=f"Its parameters: {has}.")
    values = {name: _parameter(spec, parameter, given) for name, parameter in declared.items()}
    encoded = encode_parameters(values) if values else ""
    if len(encoded) > MAX_HEADER_PARAMETERS_BYTES:
        raise RequestSizeError(f"class parameters of {len(encoded)} bytes; at most {MAX_HEADER_PARAMETERS_BYTES}")
    return encoded


def _parameter(spec: FunctionSpec, parameter: ParameterSpec, given: Mapping[str, Any]) -> Any:
    if parameter.name not in given:
        if not parameter.has_default:
            raise InvalidError(f"{spec.name!r} needs the parameter {parameter.name!r} ({parameter.type})")
        return b64decode(parameter.default["b64"]) if parameter.type == "bytes" else parameter.default
    value = given[parameter.name]
    if parameter.type == "bytes":
        value = _bytes(value)
    if type(value).__name__ != parameter.type:
        wanted = "base64 text" if parameter.type == "bytes" else parameter.type
        raise InvalidError(f"the parameter {parameter.name!r} of {spec.name!r} must be {wanted}")
    return value


def _bytes(value: Any) -> bytes | None:
    try:
        return b64decode(value, validate=True) if isinstance(value, str) else None
    except (binascii.Error, ValueError):
        return None
