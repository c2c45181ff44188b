"""`squall node drain`/`resume`, `squall container stop`/`exec`: what operators tell machines and containers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Optional

from squall.cli import asking
from squall.cli.server import for_command
from squall.client import Client
from squall.errors import ConflictError, TimeoutError, UnimplementedError, UsageError, from_wire
from squall.http_api.routes import Route

POLL_S = 0.5


def drain(node: str, *, wait_s: Optional[float], as_json: bool) -> int:
    """No new containers on a node; waits for the end of those that it has, if that is asked for."""
    with for_command() as session:
        told = session.client.json("POST", Route.NODE_DRAIN.format(node=node), {})
        left = told["containers"] if wait_s is None else _wait_until_empty(session.client, node, wait_s)
    if as_json:
        sys.stdout.write(json.dumps({**told, "containers": left}, indent=2) + "\n")
        return 0
    sys.stdout.write(f"✓ {node} is draining: it takes no new containers.\n")
    if wait_s is not None:
        sys.stdout.write("  It has no containers any more.\n")
    elif left:
        sys.stdout.write(f"  {left} containers end once their inputs have ended; see `squall node list`.\n")
    sys.stdout.write(f"  `squall node resume {node}` ends the drain; so does a restart of its agent.\n")
    return 0


def resume(node: str, *, as_json: bool) -> int:
    """A drained node takes containers again."""
    with for_command() as session:
        told = session.client.json("POST", Route.NODE_RESUME.format(node=node), {})
    sys.stdout.write(json.dumps(told, indent=2) + "\n" if as_json else f"✓ {node} takes containers again.\n")
    return 0


def _wait_until_empty(client: Client, node: str, wait_s: float) -> int:
    until = time.monotonic() + wait_s
    while True:
        found = client.json("GET", Route.CONTAINERS)["containers"]
        here = [row["container"] for row in found if row["node"] == node]
        if not here:
            return 0
        if time.monotonic() > until:
            raise TimeoutError(
                f"after {wait_s:g} s {len(here)} containers are still on {node}: {', '.join(here[:3])}",
                fix="It goes on draining: wait longer, or end them with `squall container stop`.",
            )
        time.sleep(POLL_S)


def stop(container: str, *, graceful: bool, yes: bool, as_json: bool) -> int:
    """Ends a container."""
    asking.confirm(f"Stop container {container}?", "nothing was stopped", yes)
    with for_command() as session:
        path = Route.CONTAINER_STOP.format(container=container)
        told = session.client.json("POST", path, {"graceful": graceful})
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return 0
    what = "ends once its inputs have ended" if graceful else "is stopped; inputs that ran in it start again elsewhere"
    sys.stdout.write(f"✓ {container} on {told['node']} {what}.\n")
    return 0


def execute(container: str, command: Sequence[str], *, timeout_s: float, terminal: bool = False) -> int:
    """Runs a command beside a container; its exit status is ours."""
    if terminal:
        raise UnimplementedError(
            "a command in a container has no terminal and no input",
            fix="Leave out --pty, and give the command what it needs as arguments.",
        )
    if not command:
        raise UsageError(
            "the command is missing",
            fix=f"Write it after the container: `squall container exec {container} python -V`.",
        )
    body = json.dumps({"command": list(command), "timeout_s": timeout_s}).encode()
    path, headers = Route.CONTAINER_EXEC.format(container=container), {"Content-Type": "application/json"}
    with for_command() as session, session.client.stream("POST", path, headers, body, timeout_s + 30.0) as stream:
        for line in stream.lines():
            if "error" in line:
                raise from_wire(line["error"])
            if "status" in line:
                return _status(line["status"])
            out: Any = sys.stderr if line["stream"] == "stderr" else sys.stdout
            out.write(line["text"])
            out.flush()
    raise ConflictError(f"the output of {container} ended without a status", fix="Run the command again.")


def _status(status: int) -> int:
    """As a shell tells it: 128 and the signal's number."""
    return status if status >= 0 else 128 - status
