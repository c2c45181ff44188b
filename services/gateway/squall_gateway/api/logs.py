"""/v1/apps/{app}/logs and /v1/images: lines as they are written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from squall.http_api.routes import Route
from squall.ids import check_call_id, check_name
from squall.spec import ImageSpec
from squall_gateway.api.requests import Lines, exchange_of, workspace_of
from squall_gateway.directory import Directory
from squall_gateway.feeds import Feed
from squall_gateway.fleet import Fleet
from squall_gateway.images import Images
from squall_gateway.logs import LogQuery, Logs, as_line, parse_cursor


@dataclass(frozen=True)
class EnsureImage:
    """POST /v1/images."""

    image: ImageSpec
    environment: str = "main"
    """Whose secrets its steps mean."""


@dataclass(frozen=True, slots=True)
class LogRoutes:
    """Streams of log lines."""

    logs: Logs
    images: Images
    directory: Directory
    fleet: Fleet
    draining: asyncio.Event

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["logs"])
        router.get(Route.APP_LOGS, response_class=Response)(self.app_logs)
        router.post(Route.IMAGES, response_class=Response)(self.ensure_image)
        return router

    async def app_logs(  # noqa: PLR0913 — one parameter for each filter of the query string
        self,
        request: Request,
        app: str,
        environment: str = "main",
        follow: bool = False,
        cursor: str = "",
        tail: Annotated[int | None, Query(ge=0, le=100_000)] = None,
        call: str = "",
        function: str = "",
        stream: str = "",
        since: float = 0.0,
        until: float = 0.0,
        search: Annotated[str, Query(max_length=1000)] = "",
    ) -> Response:
        """Lines of an app, one JSON object each; `follow` goes on until the app and its last container are gone."""
        workspace = workspace_of(request)
        record = (await self.directory.find_app(app, workspace, environment)).record
        query = LogQuery(
            app=record.app_id,
            workspace=workspace,
            call=check_call_id(call) if call else "",
            function=function,
            stream=stream,
            since=since,
            until=until,
            search=search,
            cursor=parse_cursor(cursor),
        )
        lines = self._follow(query, tail) if follow else self._history(query, tail)
        return Lines(Feed(exchange_of(request), self.draining), lines)

    async def _history(self, query: LogQuery, tail: int | None) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.logs.history(query, tail)) as entries:
            async for entry in entries:
                yield as_line(entry)

    async def _follow(self, query: LogQuery, tail: int | None) -> AsyncGenerator[bytes, None]:
        if tail == 0:
            query = replace(query, cursor=await self.logs.end(query.app))
        elif tail is not None:
            async with aclosing(self.logs.history(query, tail)) as recent:
                async for entry in recent:
                    query = replace(query, cursor=parse_cursor(entry.cursor))
                    yield as_line(entry)
        async with aclosing(self.logs.follow(query, lambda: self._is_over(query.app))) as entries:
            async for entry in entries:
                yield as_line(entry)

    def _is_over(self, app_id: str) -> bool:
        """Whether the app is stopped and its last container gone."""
        known = self.directory.known_app(app_id)
        if known is not None and known.record.state != "stopped":
            return False
        return not any(self.fleet.claims_of(pool.pool) for pool in self.directory.pools_of(app_id))

    async def ensure_image(self, request: Request, wanted: EnsureImage) -> Response:
        """Build an image unless it is there: its build log, then `{"image": id}` or `{"error": ...}`."""
        traceparent = request.headers.get("traceparent", "")
        lines = self.images.ensure(
            wanted.image, workspace_of(request), traceparent, check_name(wanted.environment, "environment")
        )
        return Lines(Feed(exchange_of(request), self.draining), lines)
