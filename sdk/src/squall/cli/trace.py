"""`squall trace`: where the time of a call went."""

from __future__ import annotations

import json
import sys

from squall import ids
from squall.cli.server import for_command
from squall.cli.waterfall import phase_table, waterfall
from squall.http_api.routes import Route
from squall.http_api.traces import Trace
from squall.spec import from_wire


def trace(call: str, *, as_json: bool) -> int:
    """Prints the span tree of a call and the phases of its critical path."""
    with for_command() as session:
        body = session.client.json("GET", Route.CALL_TRACE.format(call=ids.check_call_id(call)))
    if as_json:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        return 0
    found = from_wire(Trace, body)
    lines = [
        f"call {found.call}   trace {found.trace_id}",
        "",
        *waterfall(found),
        "",
        *phase_table(found.phases, found.wall_ns),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
