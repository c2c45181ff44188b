"""What the OpenAPI document says about dicts and queues, whose routes FastAPI does not see."""

from __future__ import annotations

from typing import Any

from squall.http_api.protocol import FRAMES_CONTENT_TYPE
from squall.http_api.routes import Route

_FRAMES = {FRAMES_CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_VALUES = {"description": "ENTRY frames: a head for each, and its value.", "content": _FRAMES}
_ID = {"name": "object", "in": "path", "required": True, "schema": {"type": "string"}}


def _count(name: str) -> dict[str, Any]:
    schema = {"type": "object", "required": [name], "properties": {name: {"type": "integer"}}}
    return {"description": "How many.", "content": {"application/json": {"schema": schema}}}


def _operation(name: str, summary: str, answer: dict[str, Any], *queries: str, body: str = "") -> dict[str, Any]:
    told: dict[str, Any] = {
        "tags": [name.rpartition("_")[0]],
        "summary": summary,
        "operationId": name,
        "parameters": [_ID, *({"name": each, "in": "query", "schema": {"type": "string"}} for each in queries)],
        "responses": {"200": answer},
    }
    if body:
        told["requestBody"] = {"required": True, "content": _FRAMES, "description": body}
    return told


ENTRY_PATHS: dict[str, dict[str, Any]] = {
    Route.DICT_OPS: {"post": _operation("dict_ops", "Operations on keys", _VALUES, body="An ENTRY frame for each.")},
    Route.DICT_ITEMS: {"get": _operation("dict_items", "Some of all keys", _VALUES, "after", "keys")},
    Route.DICT_COUNT: {
        "get": _operation("dict_count", "How many keys there are", _count("count")),
        "delete": _operation("dict_clear", "Remove all keys", _count("count")),
    },
    Route.QUEUE_ITEMS: {
        "post": _operation(
            "queue_put",
            "Items into a partition, in order",
            _count("stored"),
            "partition",
            "ttl",
            "wait",
            "request",
            body="An ENTRY frame for each.",
        ),
        "get": _operation("queue_items", "Some items, which stay there", _VALUES, "partition", "after"),
    },
    Route.QUEUE_TAKEN: {
        "post": _operation("queue_take", "Items out of a partition", _VALUES, "partition", "most", "wait", "request")
    },
    Route.QUEUE_COUNT: {
        "get": _operation("queue_count", "How many items there are", _count("count"), "partition", "total"),
        "delete": _operation("queue_clear", "Remove items", _count("count"), "partition", "total"),
    },
    Route.ENTRIES: {
        "post": {
            "tags": ["dict"],
            "summary": "Single operations on any dicts and queues, each with an outcome of its own",
            "operationId": "entries",
            "requestBody": {"required": True, "content": _FRAMES, "description": "An ENTRY frame for each."},
            "responses": {"200": _VALUES},
        }
    },
}
