"""GET /v1/calls, GET /v1/calls/{id}, its trace and its cancel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from squall.http_api.calls import CallSummary
from squall.http_api.routes import Route
from squall.http_api.traces import Trace
from squall_gateway.api.requests import workspace_of
from squall_gateway.cancels import Cancels
from squall_gateway.directory import Directory
from squall_gateway.history import History
from squall_gateway.results import Results
from squall_gateway.traces import Traces
from squall_gateway.web.history import WebHistory


@dataclass(frozen=True)
class CallList:
    """GET /v1/calls."""

    calls: list[CallSummary]
    missing: str = ""
    """Why some are not among them."""


@dataclass(frozen=True)
class CancelCall:
    """POST /v1/calls/{call}/cancel."""

    terminate_containers: bool = False


@dataclass(frozen=True)
class Cancelled:
    """Answer: how many inputs had not ended before."""

    cancelled: int


@dataclass(frozen=True, slots=True)
class HistoryRoutes:
    """What happened to calls."""

    history: History
    web: WebHistory
    results: Results
    traces: Traces
    cancels: Cancels
    directory: Directory

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["calls"])
        router.get(Route.CALLS)(self.list_calls)
        router.get(Route.CALL, response_model=None)(self.call)
        router.post(Route.CALL_CANCEL)(self.cancel)
        router.get("/v1/calls/{call}/trace")(self.trace)
        return router

    async def list_calls(
        self,
        request: Request,
        app: str = "",
        function: str = "",
        environment: str = "main",
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> CallList:
        """Recent calls and web requests, newest first: of the workspace, an app or a function of it."""
        workspace = workspace_of(request)
        if app:
            apps = [(await self.directory.find_app(app, workspace, environment)).record]
        else:
            apps = [known.record for known in self.directory.apps() if known.record.workspace == workspace]
        pools = [pool for record in apps for pool in self.directory.pools_of(record.app_id)]
        if function:
            names = {p.function_id: await self.directory.function_name(p.function_id, workspace) for p in pools}
            pools = [pool for pool in pools if names[pool.function_id] == function]
        calls = await self.history.recent(pools, workspace, limit)
        web, missing = await self.web.recent(apps, function, workspace, limit)
        return CallList(sorted([*calls, *web], key=lambda call: -call.accepted_at)[:limit], missing)

    async def call(self, request: Request, call: str, index: int | None = None) -> dict[str, Any]:
        """A call in full: the fields of its summary, its failed attempts, its history."""
        return await self.history.one(self.results.check(call), workspace_of(request), index)

    async def cancel(self, request: Request, call: str, wanted: CancelCall | None = None) -> Cancelled:
        """Cancel what of a call has not ended."""
        terminate = wanted is not None and wanted.terminate_containers
        cancelled = await self.cancels.call(
            self.results.check(call), workspace_of(request), terminate_containers=terminate
        )
        return Cancelled(cancelled)

    async def trace(self, request: Request, call: str, index: int = 0) -> Trace:
        """Spans and critical path of one input."""
        return await self.traces.of_call(self.results.check(call), index, workspace_of(request))
