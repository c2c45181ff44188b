"""What the OpenAPI document says about calls in JSON: their bodies and answers, which FastAPI does not see."""

from __future__ import annotations

from typing import Any

from squall.spec import CHUNK_INPUTS

_ARGS = {"type": "array", "items": {}, "description": "Positional arguments."}
_KWARGS = {"type": "object", "additionalProperties": True, "description": "Keyword arguments."}
_PARAMETERS = {
    "type": "object",
    "description": "Of a class: values of its `squall.parameter()`; bytes as base64 text. Not given = their defaults.",
    "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "boolean"}]},
}
_WEBHOOK = {
    "type": "string",
    "format": "uri",
    "description": "Is told of the end of the call (docs/howto/webhooks.md).",
}
_INPUTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": CHUNK_INPUTS,
    "description": "One element for each input: its positional arguments, or both kinds.",
    "items": {
        "anyOf": [
            _ARGS,
            {"type": "object", "additionalProperties": False, "properties": {"args": _ARGS, "kwargs": _KWARGS}},
        ]
    },
}


def _body(required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    if required:
        schema["required"] = required
    return {"requestBody": {"required": bool(required), "content": {"application/json": {"schema": schema}}}}


CALL_BODY = _body([], args=_ARGS, kwargs=_KWARGS, parameters=_PARAMETERS, webhook=_WEBHOOK)
MAP_BODY = _body(["inputs"], inputs=_INPUTS, kwargs=_KWARGS, parameters=_PARAMETERS, webhook=_WEBHOOK)
_SPAWN_ONE = CALL_BODY["requestBody"]["content"]["application/json"]["schema"]
_SPAWN_MANY = MAP_BODY["requestBody"]["content"]["application/json"]["schema"]
SPAWN_BODY = {"requestBody": {"content": {"application/json": {"schema": {"anyOf": [_SPAWN_ONE, _SPAWN_MANY]}}}}}

_CALL = {"type": "string", "description": "Id of the call."}
_VALUE = {
    "type": "object",
    "required": ["call", "index"],
    "properties": {
        "call": _CALL,
        "index": {"type": "integer"},
        "result": {"description": "What the function returned."},
        "result_at": {"type": "string", "description": "Instead of `result` above 8 MiB: the path where it lies."},
    },
}
_LATER = {
    "type": "object",
    "required": ["call", "waiting", "output"],
    "properties": {
        "call": _CALL,
        "waiting": {"type": "string", "description": "Why it waits, if that is known."},
        "output": {"type": "string", "description": "The path to ask again."},
    },
}
_SPAWNED = {
    "type": "object",
    "required": ["call", "inputs"],
    "properties": {
        "call": _CALL,
        "inputs": {"type": "integer"},
        "output": {"type": "string", "description": "Where its result will be."},
        "outputs": {"type": "string", "description": "Where the results of many inputs will be."},
    },
}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_NDJSON = {"application/x-ndjson": {"schema": {"type": "string"}}}
_NOT_YET = _json("Accepted; there is no result yet.", _LATER)
OUTPUT: dict[int | str, dict[str, Any]] = {200: _json("The result.", _VALUE), 202: _NOT_YET}
CALL_RESULTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result; of a generator a line for each item, and a last one.",
        "content": {**_json("", _VALUE)["content"], **_NDJSON},
    },
    202: _NOT_YET,
}
ACCEPTED: dict[int | str, dict[str, Any]] = {202: _json("It is stored and goes on by itself.", _SPAWNED)}
LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "A line of JSON for each result as it comes.", "content": _NDJSON}
}
