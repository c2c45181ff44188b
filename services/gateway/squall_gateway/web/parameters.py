"""Class parameters of a web request: they stand in the query of its URL, as text."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from squall.errors import InvalidError
from squall.http_api.protocol import encode_parameters
from squall.spec import FunctionSpec

MAX_PARAMETERS_BYTES = 16 * 1024


def parameters_of(spec: FunctionSpec, query: bytes) -> str:
    """Class parameters from the query, encoded; empty for a plain function. Raises `InvalidError`."""
    if not spec.parameters:
        return ""
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    values: dict[str, Any] = {}
    for parameter in spec.parameters:
        if parameter.name in given:
            values[parameter.name] = _value(parameter.name, parameter.type, given[parameter.name])
        elif parameter.has_default:
            values[parameter.name] = _default(parameter.default)
        else:
            raise InvalidError(f"the query needs the parameter {parameter.name!r}")
    if sum(len(str(value)) for value in values.values()) > MAX_PARAMETERS_BYTES:
        raise InvalidError(f"class parameters may have {MAX_PARAMETERS_BYTES} bytes in all")
    return encode_parameters(values)


def _value(name: str, kind: str, text: str) -> Any:
    if kind == "int":
        try:
            return int(text)
        except ValueError as error:
            raise InvalidError(f"the parameter {name!r} must be a whole number, got {text!r}") from error
    if kind == "bool":
        if text.lower() not in ("true", "false", "1", "0"):
            raise InvalidError(f"the parameter {name!r} must be true or false, got {text!r}")
        return text.lower() in ("true", "1")
    return text.encode() if kind == "bytes" else text


def _default(value: Any) -> Any:
    if isinstance(value, dict) and "b64" in value:
        import base64

        return base64.b64decode(value["b64"])
    return value
