"""`squall call list` and `get`."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Optional

from squall import ids
from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.client import query
from squall.http_api.calls import CallSummary
from squall.http_api.routes import Route
from squall.spec import from_wire

COLUMNS = (
    ("CALL", "call"),
    ("FUNCTION", "function"),
    ("KIND", "kind"),
    ("STATE", "state"),
    ("INPUTS", "progress"),
    ("ACCEPTED", "accepted"),
    ("ERROR", "error"),
)


def list_calls(*, app: Optional[str], environment: Optional[str], limit: int, as_json: bool) -> int:
    """Prints calls, newest first."""
    with for_command() as session:
        app_id = lookup.app(session.client, app, environment).app_id if app else None
        answer = session.client.json("GET", query(Route.CALLS, app=app_id, limit=limit))
    found = [from_wire(CallSummary, row) for row in answer["calls"]]
    rows = [_row(call) for call in found if app_id in (None, call.app)]
    shown = rows if not as_json else [dataclasses.asdict(call) for call in found if app_id in (None, call.app)]
    table.show(shown, COLUMNS, as_json=as_json, empty="No calls.")
    if answer.get("missing"):
        sys.stderr.write(f"{answer['missing']}\n")
    return 0


def get(call: str, *, as_json: bool) -> int:
    """Prints one call."""
    with for_command() as session:
        body = session.client.json("GET", Route.CALL.format(call=ids.check_call_id(call)))
    if as_json:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        return 0
    summary = from_wire(CallSummary, body)
    lines = {
        "call": summary.call,
        "function": _function(summary, body),
        "app": summary.app,
        "kind": summary.kind,
        "state": summary.state,
        "inputs": _progress(summary),
        "accepted": table.ago(summary.accepted_at),
        "took": f"{summary.ended_at - summary.accepted_at:.3f} s" if summary.ended_at else "-",
        "ended": table.ago(summary.ended_at) if summary.ended_at else "",
        "input": _input(body.get("input")),
        "error": summary.error,
        "dead": _dead(body),
        "from": body.get("redriven_from", ""),
        "waiting": body.get("waiting", ""),
        "history": body.get("history_missing", ""),
    }
    for name, value in lines.items():
        if value:
            sys.stdout.write(f"{name:<9} {value}\n")
    _write_attempts(body)
    return 0


def _function(summary: CallSummary, body: dict[str, Any]) -> str:
    return f"{summary.function} (version {body['version']})" if body.get("version") else summary.function


def _input(told: Optional[dict[str, Any]]) -> str:
    """What its first input is, without its value: only the function's code can read that."""
    if not told:
        return ""
    where = f"blob {told['blob']}" if told.get("blob") else "inline"
    method = f", method {told['method']}" if told.get("method") else ""
    return f"{told['bytes']} bytes, {told['encoding']}, {where}{method}"


def _dead(body: dict[str, Any]) -> str:
    """Whether it can be redriven, or was."""
    dead, redriven = body.get("dead_letters") or [], body.get("redriven_to") or []
    if not dead:
        return ""
    if redriven:
        return "redriven to " + ", ".join(str(each["call"]) for each in redriven)
    return f"`squall call redrive {body['call']}` runs it again"


def _write_attempts(body: dict[str, Any]) -> None:
    for attempt in body.get("attempts") or []:
        reason = f"{attempt['kind']}: {attempt['reason']}"
        sys.stdout.write(f"attempt   {attempt['attempt']} failed {table.ago(attempt['failed_at'])}, {reason}\n")
    traceback = str((body.get("last_error") or {}).get("traceback") or "")
    if traceback:
        sys.stdout.write(f"\n{traceback.rstrip()}\n")


def _row(call: CallSummary) -> dict[str, Any]:
    return {**dataclasses.asdict(call), "progress": _progress(call), "accepted": table.ago(call.accepted_at)}


def _progress(call: CallSummary) -> str:
    failed = f", {call.failed} failed" if call.failed else ""
    return f"{call.finished}/{call.inputs}{failed}"
