"""`squall function info` and `stats`: what a function declares, and what its containers do now."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from typing import Any, Optional

from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.client import Client, query
from squall.errors import NotFoundError
from squall.http_api.apps import AppStatus, AppSummary
from squall.http_api.fleet import ContainerInfo
from squall.http_api.routes import Route
from squall.spec import from_wire

STATS_COLUMNS = (
    ("FUNCTION", "function"),
    ("PARAMETERS", "given"),
    ("QUEUED", "backlog"),
    ("RUNNING", "running"),
    ("READY", "ready"),
    ("STARTING", "starting"),
    ("DESIRED", "desired"),
    ("WHY", "why"),
)


def info(app: str, function: str, *, environment: Optional[str], as_json: bool) -> int:
    """Prints the declaration of a function."""
    with for_command() as session:
        summary = lookup.app(session.client, app, environment)
        path = query(Route.FUNCTIONS, app=summary.app_id, name=function, spec=1)
        found = _found(session.client, path, summary, function)
        there = session.client.json("GET", query(Route.CONTAINERS, app=summary.app_id))
        status = from_wire(AppStatus, session.client.json("GET", Route.APP_STATUS.format(app=summary.app_id)))
    own = [from_wire(ContainerInfo, row) for row in there["containers"]]
    found["containers"] = [
        {"container": each.container, "state": each.state, "how": each.how} for each in own if each.function == function
    ]
    found["waiting"] = [pool.waiting for pool in status.pools if pool.function == function and pool.waiting]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    for name, value in lines(found, summary).items():
        if value:
            sys.stdout.write(f"{name:<12} {value}\n")
    return 0


def _found(client: Client, path: str, app: AppSummary, function: str) -> dict[str, Any]:
    if function not in app.functions:
        there = ", ".join(app.functions) or "none"
        raise NotFoundError(f"app {app.name!r} has no function {function!r}", fix=f"Its functions: {there}.")
    answer: dict[str, Any] = client.json("GET", path)
    return answer


def lines(found: dict[str, Any], app: AppSummary) -> dict[str, str]:
    """What is told about a function, in words."""
    spec = found["spec"]
    scaling, resources, retry, code = spec["scaling"], spec["resources"], spec["retry"], spec["code"]
    most = "no limit" if scaling["max_containers"] is None else scaling["max_containers"]
    kept = f"{scaling['min_containers']} to {most}, buffer {scaling['buffer_containers']}"
    gpus = ", ".join(f"{gpu['type']} x {gpu['count']}" for gpu in resources["gpus"])
    steps = ", ".join(step["kind"] for step in spec["image"]["steps"]) or "no packages"
    methods = ", ".join(_method(method) for method in spec["methods"] if method["name"])
    started = [each for each in found.get("containers", ()) if each["how"]]
    path = Route.FUNCTION_CALL.format(app=app.name, function=found["name"] + (".METHOD" if methods else ""))
    return {
        "function": f"{found['name']} of {app.name} ({app.app_id}), version {found['version']}",
        "id": found["function_id"],
        "kind": "class" if spec["is_class"] else _kind(spec["methods"][0]),
        "methods": methods,
        "parameters": ", ".join(f"{each['name']}: {each['type']}" for each in spec["parameters"]),
        "code": f"{code['module']}.{code['qualname']}",
        "image": f"Python {spec['image']['python_version']}, {steps}",
        "resources": f"{resources['cpu']:g} cores, {resources['memory_mib']} MiB" + (f", {gpus}" if gpus else ""),
        "containers": f"{kept}; idle ones end after {scaling['scaledown_window_s']:g} s",
        "start": _start(spec),
        "started as": "; ".join(f"{n} {how}" for how, n in Counter(each["how"] for each in started).items()),
        "waits for": "; ".join(found.get("waiting", ())),
        "inputs": f"{scaling['max_inputs']} at once in a container" if scaling["max_inputs"] > 1 else "",
        "timeouts": f"{spec['timeout_s']:g} s a call, {spec['startup_timeout_s']:g} s to start",
        "retries": f"{retry['max_retries']}" if retry["max_retries"] else "none",
        "over HTTP": f"POST {path}",
    }


def _start(spec: dict[str, Any]) -> str:
    """How its containers come to be, if nothing speaks against it."""
    if not spec.get("use_template", True):
        return "each container imports for itself (use_template=False)"
    if spec.get("memory_snapshot"):
        return "forks of a snapshot: imports and @enter(snap=True) done"
    if spec["resources"]["gpus"]:
        return "each container imports for itself: with GPUs, forks need enable_memory_snapshot=True"
    return "forks of a template: imports done"


def _kind(method: dict[str, Any]) -> str:
    return ("async " if method["is_async"] else "") + ("generator" if method["is_generator"] else "function")


def _method(method: dict[str, Any]) -> str:
    kind = _kind(method)
    return method["name"] if kind == "function" else f"{method['name']} ({kind.replace(' function', '')})"


def stats(app: str, function: Optional[str], *, environment: Optional[str], as_json: bool) -> int:
    """Prints what the containers of an app, or of one function, do at the moment."""
    with for_command() as session:
        summary = lookup.app(session.client, app, environment)
        if function is not None and function not in summary.functions:
            _found(session.client, "", summary, function)
        status = from_wire(AppStatus, session.client.json("GET", Route.APP_STATUS.format(app=summary.app_id)))
    rows = [dataclasses.asdict(pool) for pool in status.pools if function in (None, pool.function)]
    shown = rows if as_json else [{**row, "given": _given(row), "why": row["waiting"] or row["reason"]} for row in rows]
    empty = f"Nothing of {function or summary.name} has run lately: it has no containers and no queue."
    table.show(shown, STATS_COLUMNS, as_json=as_json, empty=empty)
    return 0


def _given(row: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in row["parameters"].items())
