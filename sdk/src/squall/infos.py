"""What the server knows of an app or a function: `info()` and `stats()` of their handles."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from squall.autoscaler import FunctionStats
from squall.client import Client, query
from squall.errors import NotFoundError, UnimplementedArgument
from squall.http_api.apps import AppStatus, AppSummary
from squall.http_api.apps import FunctionInfo as KnownFunction
from squall.http_api.routes import Route
from squall.spec import FunctionSpec, from_wire

if TYPE_CHECKING:
    from squall.invoke import Target


class AppInfo(NamedTuple):
    """An app on the server."""

    app_id: str
    name: str
    environment: str
    state: str
    """"ephemeral", "detached", "deployed" or "stopped"."""
    version: int
    functions: tuple[str, ...]
    containers: int
    created_at: datetime
    updated_at: datetime


class FunctionInfo(NamedTuple):
    """A function on the server."""

    function_id: str
    name: str
    app_id: str
    app_name: str
    version: int
    is_class: bool
    spec: FunctionSpec
    """What it declares; variables without their values."""


def app_info(client: Client, app_id: str) -> AppInfo:
    """The app as the server has it now."""
    rows = [from_wire(AppSummary, row) for row in client.json("GET", Route.APPS)["apps"]]
    for row in rows:
        if row.app_id == app_id:
            created, updated = (datetime.fromtimestamp(at).astimezone() for at in (row.created_at, row.updated_at))
            named = (row.app_id, row.name, row.environment, row.state, row.version, tuple(row.functions))
            return AppInfo(*named, row.containers, created, updated)
    raise NotFoundError(f"there is no app {app_id}")


def app_stats(client: Client, app_id: str, window: Mapping[str, Any]) -> dict[str, FunctionStats]:
    """What each function of the app does now, those that have containers or a queue."""
    refuse_window(window)
    status = from_wire(AppStatus, client.json("GET", Route.APP_STATUS.format(app=app_id)))
    found: dict[str, FunctionStats] = {}
    for pool in status.pools:
        known = found.get(pool.function, FunctionStats(0, 0, 0, 0))
        slots = max(0, pool.ready - pool.running)
        found[pool.function] = FunctionStats(
            known.backlog + pool.backlog,
            known.num_total_runners + pool.ready,
            known.num_running_inputs + pool.running,
            known.input_headroom + slots,
        )
    return found


def function_info(target: Target) -> FunctionInfo:
    """The function as the server has it now."""
    path = query(Route.FUNCTIONS, app=target.app_id, name=target.function, spec=1)
    known = from_wire(KnownFunction, target.client.json("GET", path))
    assert known.spec is not None
    return FunctionInfo(
        target.function_id or known.function_id,
        known.name,
        known.app_id,
        known.app_name,
        known.version,
        known.is_class,
        known.spec,
    )


def refuse_window(window: Mapping[str, Optional[Any]]) -> None:
    """Raise for a time in the past: the server keeps no history of counts."""
    for name, value in window.items():
        if value is not None:
            raise UnimplementedArgument(
                f"`{name}=` of stats() asks for the past, and squall keeps no counts of the past",
                fix="Leave it out for what is now; Prometheus keeps the rest (docs/howto/install.md).",
            )
