"""`squall container list` and `squall node list`."""

from __future__ import annotations

import dataclasses
from typing import Optional

from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.http_api import ContainerInfo, NodeInfo, Route
from squall.spec import from_wire

CONTAINER_COLUMNS = (
    ("CONTAINER", "container"),
    ("FUNCTION", "function"),
    ("APP", "app"),
    ("NODE", "node"),
    ("STATE", "state"),
    ("RUNNING", "running"),
    ("STARTED", "started"),
    ("HOW", "how"),
)
NODE_COLUMNS = (
    ("NODE", "node"),
    ("REGION", "region"),
    ("CPU", "cpu_use"),
    ("MEMORY MiB", "memory_use"),
    ("GPUS", "gpus"),
    ("CONTAINERS", "containers"),
    ("BACKENDS", "backends"),
    ("DRAINING", "draining"),
    ("SEEN", "seen"),
)


def containers(*, app: Optional[str], environment: Optional[str], as_json: bool) -> int:
    """Prints containers."""
    with for_command() as session:
        app_id = lookup.app(session.client, app, environment).app_id if app else None
        answer = session.client.json("GET", Route.CONTAINERS)
    found = [from_wire(ContainerInfo, row) for row in answer["containers"]]
    rows = [dataclasses.asdict(container) for container in found if app_id in (None, container.app)]
    shown = rows if as_json else [{**row, "started": table.ago(row["started_at"])} for row in rows]
    table.show(shown, CONTAINER_COLUMNS, as_json=as_json, empty="No containers.")
    return 0


def nodes(*, as_json: bool) -> int:
    """Prints machines."""
    with for_command() as session:
        answer = session.client.json("GET", Route.NODES)
    found = [from_wire(NodeInfo, row) for row in answer["nodes"]]
    rows = [dataclasses.asdict(node) for node in found]
    shown = (
        rows
        if as_json
        else [
            {
                **row,
                "cpu_use": f"{row['cpu_used']:g} of {row['cpu']:g}",
                "memory_use": f"{row['memory_used_mib']} of {row['memory_mib']}",
                "seen": table.ago(row["seen_at"]),
            }
            for row in rows
        ]
    )
    table.show(shown, NODE_COLUMNS, as_json=as_json, empty="No machines.")
    return 0
