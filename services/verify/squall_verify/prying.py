"""Prying: what a caller tries who has somebody else's call id. Makes requests, judges nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from squall.client import Client, query
from squall.errors import SquallError
from squall.http_api.routes import Route

READ_BYTES = 64 * 1024
LISTED = 200


def newest_call(logs: Sequence[Path]) -> str:
    """The call that was acknowledged last to those who keep these logs; empty when there is none."""
    told = [line for line in newest_lines(logs) if line["what"] in ("ack", "value") and line.get("call")]
    return str(max(told, key=lambda line: line["at"])["call"]) if told else ""


def has_result(logs: Sequence[Path], op: str) -> bool:
    """Whether an operation of theirs has any."""
    return any(line["op"] == op and line["what"] == "value" for line in newest_lines(logs))


def newest_lines(logs: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """What others have logged last."""
    for log in logs:
        with suppress(FileNotFoundError):
            for line in log.read_bytes()[-READ_BYTES:].splitlines():
                with suppress(ValueError):  # the first one is cut off
                    yield json.loads(line)


def try_everything(client: Client, call: str) -> Iterator[tuple[str, str]]:
    """Each request about a call, and the name of the error that answered it; empty when it was granted."""
    requests = (
        ("GET", Route.CALL),
        ("GET", Route.CALL_RESULT),
        ("GET", Route.CALL_TRACE),
        ("POST", Route.CALL_REDRIVE),
        ("POST", Route.CALL_CANCEL),
    )
    for method, route in requests:
        error = ""
        try:
            client.request(method, route.format(call=call))
        except SquallError as refused:
            error = type(refused).__name__
        yield f"{method} {route}", error


def listed(client: Client) -> list[str]:
    """The calls that are listed for this caller."""
    answer = client.json("GET", query(Route.CALLS, limit=LISTED))
    return [each["call"] for each in answer["calls"]]
