"""`squall call cancel`: one call, or everything of an app. Owns the count when the connection breaks in between."""

from __future__ import annotations

import json
import secrets
import sys
from typing import Any, NamedTuple, Optional

from squall import ids
from squall.cli import lookup
from squall.cli.server import for_command
from squall.client import BROKEN, Client, Retry
from squall.errors import UsageError, from_wire
from squall.http_api.routes import Route


class Counts(NamedTuple):
    """What a cancel did."""

    cancelled: int
    ended: int
    exact: bool
    """False when the server was restarted in between: what it did just before is not in the count."""


def cancel(
    call: Optional[str],
    *,
    every: bool,
    app: Optional[str],
    function: Optional[str],
    environment: Optional[str],
    terminate_containers: bool,
) -> int:
    """Cancels a call, or all calls of an app or of a function of it."""
    if every == bool(call) or every != bool(app) or (function and not every):
        raise UsageError(
            "cancel takes either a call, or --all with --app",
            fix="`squall call cancel fc-...`, or `squall call cancel --all --app APP`.",
        )
    with for_command() as session:
        if call:
            wanted, what = {"call": ids.check_call_id(call)}, call
        else:
            app_id = lookup.app(session.client, str(app), environment).app_id
            wanted, what = {"app": app_id, "function": function or ""}, f"{app}.{function}" if function else str(app)
        counts = follow(session.client, {**wanted, "terminate_containers": terminate_containers})
    least = "" if counts.exact else "at least "
    if call and not counts.cancelled and counts.exact:
        sys.stdout.write(f"{call} had already ended.\n")
        return 0
    before = f"; {counts.ended} had already ended" if counts.ended else ""
    inputs = "input" if counts.cancelled == 1 else "inputs"
    sys.stdout.write(f"Cancelled {least}{counts.cancelled} {inputs} of {what}{before}.\n")
    return 0


def follow(client: Client, wanted: dict[str, Any]) -> Counts:
    """Begin the cancel, or join it again after a broken connection, until it is done. Raises what it failed with."""
    body = json.dumps({**wanted, "request": secrets.token_hex(8)}).encode()
    headers, retry, jobs = {"Content-Type": "application/json"}, Retry(client), {}
    while True:
        try:
            with client.stream("POST", Route.CANCELS, headers, body) as stream:
                for line in stream.lines():
                    retry.progress()
                    jobs[line["job"]] = (int(line["cancelled"]), int(line["ended"]))
                    if line.get("error"):
                        raise from_wire(line["error"])
                    if line["done"]:
                        last = jobs[line["job"]]
                        return Counts(sum(each[0] for each in jobs.values()), last[1], len(jobs) == 1)
            raise EOFError("the stream ended before the cancel was done")
        except BROKEN as error:
            retry.wait(error)
