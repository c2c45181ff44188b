"""What the OpenAPI document says about the call path, which FastAPI does not see, and about errors."""

from __future__ import annotations

from typing import Any

from squall.http_api.protocol import FRAMES_CONTENT_TYPE, Header
from squall.http_api.routes import Route
from squall.spec import Encoding, Kind

_FRAMES = {FRAMES_CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_WAITING = {
    "description": "Accepted; there is no result yet.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"call": {"type": "string"}, "waiting": {"type": "string"}},
                "required": ["call", "waiting"],
            }
        }
    },
}
_RESULT = {"description": "One RESULT frame.", "content": _FRAMES}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "fix", "retryable"],
            "properties": {
                "code": {"type": "string", "description": "Stable; see the catalogue of errors."},
                "message": {"type": "string"},
                "fix": {"type": "string", "description": "What to do next."},
                "retryable": {"type": "boolean"},
                "data": {"type": "object"},
                "request": {"type": "string", "description": "Id of the request in the gateway's log."},
            },
        }
    },
}


def _header(name: str, description: str, *, required: bool = False, values: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"} | ({"enum": values} if values else {})
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, description: str, kind: str = "integer") -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": kind}}


_CALL_HEADERS = [
    _header(Header.FUNCTION, "<app id>/<function name>", required=True),
    _header(Header.FUNCTION_ID, "Pins a version of the function."),
    _header(Header.METHOD, "Method of a class."),
    _header(Header.PARAMETERS, "Class parameters: base64 of JSON."),
    _header(Header.KIND, "How the call is made.", values=[kind.value for kind in Kind]),
    _header(Header.ENCODING, "Of the payload.", values=[encoding.value for encoding in Encoding]),
    _header(Header.PARENT, "The call that makes this one."),
    _header(Header.TRACEPARENT, "W3C trace context of the caller."),
]
_SPANS = {
    "type": "object",
    "required": ["batches"],
    "properties": {
        "batches": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["trace_id", "parent_id", "call", "index", "attempt"],
                "properties": {
                    **{name: {"type": "string"} for name in ("trace_id", "parent_id", "call", "attempt")},
                    "index": {"type": "integer"},
                    "rows": {
                        "type": "array",
                        "description": "[name, parent, service, start ns, duration ns, attributes] each.",
                        "items": {"type": "array"},
                    },
                },
            },
        }
    },
}
_ACCEPTED = {
    "description": "All of them are accepted.",
    "content": {"application/json": {"schema": {"type": "object", "properties": {"accepted": {"type": "integer"}}}}},
}
_WAIT = _query("wait", "Seconds to wait for the result, at most 60.", "number")

HOT_PATHS: dict[str, dict[str, Any]] = {
    Route.CALLS: {
        "post": {
            "tags": ["calls"],
            "summary": "Make a call",
            "description": "The body is the payload. A call id is taken once: the same request makes no second call. "
            "A generator is answered with a stream of ITEM frames and a RESULT frame.",
            "operationId": "make_call",
            "parameters": [
                _header(Header.CALL, "Call id, made by the caller.", required=True),
                *_CALL_HEADERS,
                _header(
                    Header.IDEMPOTENCY_KEY,
                    "Up to 255 printable ASCII characters; kinds remote and spawn. For 24 h the same key with the same "
                    "payload is the same call of the function (the answer has its id), with another payload a 409.",
                ),
                _header(Header.BLOB, "<sha256>:<bytes> of a payload in the blob store, or of the body."),
                _WAIT,
            ],
            "requestBody": {
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
            },
            "responses": {"200": _RESULT, "202": _WAITING},
        }
    },
    Route.SPAWNS: {
        "post": {
            "tags": ["calls"],
            "summary": "Make several spawned calls of one function",
            "description": "For callers that have more than one at the same time. A call id is taken once.",
            "operationId": "make_calls",
            "parameters": _CALL_HEADERS,
            "requestBody": {
                "required": True,
                "content": _FRAMES,
                "description": "One SPAWNED frame with at most 1,000 calls; their payloads are inline.",
            },
            "responses": {"200": _ACCEPTED},
        }
    },
    Route.CALL_RESULT: {
        "get": {
            "tags": ["calls"],
            "summary": "Wait for a result",
            "operationId": "get_result",
            "parameters": [_path("call"), _query("index", "Input of a map."), _WAIT],
            "responses": {"200": _RESULT, "202": _WAITING},
        }
    },
    Route.CALL_INPUTS: {
        "post": {
            "tags": ["calls"],
            "summary": "Add inputs to a map",
            "operationId": "add_inputs",
            "parameters": [_path("call"), *_CALL_HEADERS],
            "requestBody": {
                "required": True,
                "content": _FRAMES,
                "description": "INPUT or INPUTS frames, at most 1,000 inputs.",
            },
            "responses": {"200": _ACCEPTED},
        }
    },
    Route.CALL_RESULTS: {
        "get": {
            "tags": ["calls"],
            "summary": "Results as they come",
            "operationId": "stream_results",
            "parameters": [_path("call"), _query("cursor", "Position after which to go on.")],
            "responses": {"200": {"description": "RESULT and KEEPALIVE frames, without end.", "content": _FRAMES}},
        }
    },
    Route.SPANS: {
        "post": {
            "tags": ["traces"],
            "summary": "Take in what a caller has measured itself",
            "operationId": "post_spans",
            "requestBody": {"required": True, "content": {"application/json": {"schema": _SPANS}}},
            "responses": {"202": {"description": "They will be stored.", "content": {"application/json": {}}}},
        }
    },
}


def with_errors(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the form of errors in every operation, and the bearer token in all but the health checks."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Error"] = ERROR
    components["schemas"].pop("HTTPValidationError", None)
    components["schemas"].pop("ValidationError", None)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    refers = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error of the catalogue.", "content": refers}
            if path.startswith("/v1/"):
                operation["security"] = [{"token": []}]
    return document
