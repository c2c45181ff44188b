"""POST /v1/cancels: cancels of many inputs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from squall.http_api.calls import CancelMany
from squall.http_api.routes import Route
from squall_gateway.api.requests import Lines, exchange_of, workspace_of
from squall_gateway.bulk_cancels import BulkCancels
from squall_gateway.feeds import Feed


@dataclass(frozen=True, slots=True)
class CancelRoutes:
    """Cancels everything of a call, an app or a function."""

    bulk: BulkCancels
    draining: asyncio.Event

    def router(self) -> APIRouter:
        """The route."""
        router = APIRouter(tags=["calls"])
        router.post(Route.CANCELS, response_class=Response)(self.cancel_many)
        return router

    async def cancel_many(self, request: Request, wanted: CancelMany) -> Response:
        """Cancel what of a call, or of an app, has not ended: one JSON object a line with the counts so far,
        `{"job", "cancelled", "ended", "done"}`. The same `request` again joins the cancel that runs."""
        job = await self.bulk.begin(wanted, workspace_of(request))
        return Lines(Feed(exchange_of(request), self.draining), self.bulk.progress(job))
