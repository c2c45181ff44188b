"""Events: what a receiver is told about the end of a call. Pure; the words of the body are an API.

Neither arguments nor results nor messages of exceptions are in it: they may hold what is nobody else's. The path where
the result lies is.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from squall.http_api.routes import Route
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.functions import FunctionRecord


def event_of(outcome: str) -> str:
    """`call.succeeded` and so on."""
    return f"call.{outcome}"


def body_of(asked: CallRequested, result: CallResult, function: FunctionRecord | None, ended_at: float) -> bytes:
    """The event in JSON. `function` is None if it is no longer known."""
    data: dict[str, Any] = {
        "call": asked.call,
        "index": asked.index,
        "kind": asked.kind,
        "outcome": result.outcome,
        "app": function.app_name if function else "",
        "app_id": asked.app,
        "function": label_of(asked, function),
        "version": function.version if function else 0,
        "environment": function.environment if function else "",
        "workspace": asked.workspace,
        "accepted_at": iso(asked.accepted_at),
        "started_at": iso(result.started_at) if result.started_at else None,
        "ended_at": iso(ended_at),
        "result": f"{Route.CALL_OUTPUT.format(call=asked.call)}?index={asked.index}",
    }
    if result.error is not None:
        data["error"] = {"kind": str(result.error.get("kind", "")), "type": str(result.error.get("type", ""))}
    if asked.redriven_from:
        data["redriven_from"] = asked.redriven_from
    event = {"type": event_of(result.outcome), "timestamp": iso(ended_at), "data": data}
    return json.dumps(event, separators=(",", ":")).encode()


def label_of(asked: CallRequested, function: FunctionRecord | None) -> str:
    """The function as its app calls it, with its method."""
    name = function.spec.name if function else asked.function
    return f"{name}.{asked.method}" if asked.method else name


def iso(at: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
