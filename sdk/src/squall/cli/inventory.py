"""`squall container list` and `squall node list`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Optional

from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.http_api.fleet import ContainerInfo, GpuInfo, NodeInfo
from squall.http_api.routes import Route
from squall.spec import from_wire

CONTAINER_COLUMNS = (
    ("CONTAINER", "container"),
    ("FUNCTION", "function"),
    ("APP", "app"),
    ("NODE", "node"),
    ("STATE", "state"),
    ("RUNNING", "running"),
    ("STARTED", "started"),
    ("GPUS", "gpus"),
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
    ("KIND", "kind"),
    ("SEEN", "seen"),
)


def containers(*, app: Optional[str], environment: Optional[str], as_json: bool) -> int:
    """Prints containers."""
    with for_command() as session:
        app_id = lookup.app(session.client, app, environment).app_id if app else None
        answer = session.client.json("GET", Route.CONTAINERS)
    found = [from_wire(ContainerInfo, row) for row in answer["containers"]]
    found = [container for container in found if app_id in (None, container.app)]
    rows = [dataclasses.asdict(container) for container in found]
    if not as_json:
        for row, container in zip(rows, found):
            row.update(started=table.ago(container.started_at), gpus=devices(container.gpus))
    table.show(rows, CONTAINER_COLUMNS, as_json=as_json, empty="No containers.")
    return 0


def nodes(*, as_json: bool) -> int:
    """Prints machines."""
    with for_command() as session:
        answer = session.client.json("GET", Route.NODES)
    found = [from_wire(NodeInfo, row) for row in answer["nodes"]]
    rows = [dataclasses.asdict(node) for node in found]
    if not as_json:
        for row, node in zip(rows, found):
            row.update(_for_people(node))
    table.show(rows, NODE_COLUMNS, as_json=as_json, empty="No machines.")
    if not as_json:
        _tell_notes(found)
    return 0


def _for_people(node: NodeInfo) -> dict[str, Any]:
    kind = "preemptible" if node.preemptible else ""
    if node.leaving_at:
        kind = "preemptible, is being taken away"
    return {
        "cpu_use": f"{node.cpu_used:g} of {node.cpu:g}",
        "memory_use": f"{node.memory_used_mib} of {node.memory_mib}",
        "gpus": devices(node.devices) or (f"none ({node.gpu_note})" if node.gpu_note else "none"),
        "kind": kind,
        "seen": table.ago(node.seen_at),
    }


def devices(gpus: Sequence[GpuInfo]) -> str:
    """`8 H100 (3 used, 1 in trouble)`, `2 L4 (simulated)`: how many of each type."""
    return "; ".join(
        _of_type(kind, [gpu for gpu in gpus if gpu.type == kind]) for kind in dict.fromkeys(gpu.type for gpu in gpus)
    )


def _of_type(kind: str, gpus: Sequence[GpuInfo]) -> str:
    said = []
    if all(gpu.simulated for gpu in gpus):
        said.append("simulated")
    used, troubled = sum(gpu.used for gpu in gpus), sum(bool(gpu.trouble) for gpu in gpus)
    said += [f"{used} used"] if used else []
    said += [f"{troubled} in trouble"] if troubled else []
    return f"{len(gpus)} {kind or 'unknown'}" + (f" ({', '.join(said)})" if said else "")


def _tell_notes(nodes: Sequence[NodeInfo]) -> None:
    for node in nodes:
        for note in node.backend_notes:
            sys.stdout.write(f"{node.node}: {note}\n")
        for gpu in node.devices:
            if gpu.trouble:
                sys.stdout.write(f"{node.node}: {gpu.uuid} ({gpu.type}) {gpu.trouble}\n")
