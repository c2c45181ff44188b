"""/v1/webhooks and /v1/webhook-secret: look at deliveries, try dead ones again, the key that signs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from squall.errors import InvalidError
from squall.http_api.routes import Route
from squall.http_api.webhooks import RedriveWebhooks, WebhookInfo, WebhookSecret
from squall_gateway.api.requests import workspace_of
from squall_gateway.results import Results
from squall_gateway.webhooks.looking import Webhooks
from squall_gateway.webhooks.signing import Signing, SigningKeys

MAX_PAGE = 1000


@dataclass(frozen=True)
class WebhookList:
    """GET /v1/webhooks."""

    deliveries: list[WebhookInfo]


@dataclass(frozen=True, slots=True)
class WebhookRoutes:
    """What people do with webhooks."""

    webhooks: Webhooks
    signing: Signing
    results: Results

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["webhooks"])
        router.get(Route.WEBHOOKS)(self.list_webhooks)
        router.get(Route.WEBHOOKS_OF_CALL)(self.of_call)
        router.post(Route.WEBHOOKS_REDRIVE)(self.redrive)
        router.get(Route.WEBHOOK_SECRET)(self.secret)
        router.post(Route.WEBHOOK_SECRET_ROTATE)(self.rotate)
        return router

    async def list_webhooks(
        self,
        request: Request,
        state: Literal["", "pending", "delivered", "dead"] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    ) -> WebhookList:
        """Ends of calls on their way to webhooks, the newest first; delivered ones for a day, dead ones for a week."""
        return WebhookList(await self.webhooks.newest(workspace_of(request), state, limit))

    async def of_call(self, request: Request, call: str) -> WebhookList:
        """Those of one call, with what came of the last tries."""
        return WebhookList(await self.webhooks.of_call(self.results.check(call), workspace_of(request)))

    async def redrive(self, request: Request, wanted: RedriveWebhooks) -> WebhookList:
        """Try dead ones again, with the same id and body; of one call, or of all."""
        if not 1 <= wanted.limit <= MAX_PAGE:
            raise InvalidError(f"limit must be from 1 to {MAX_PAGE}, got {wanted.limit}")
        call = self.results.check(wanted.call) if wanted.call else ""
        return WebhookList(await self.webhooks.redrive(call, workspace_of(request), wanted.limit))

    async def secret(self, request: Request) -> WebhookSecret:
        """The key that receivers verify signatures with; made if there is none yet."""
        return told(await self.signing.keys(workspace_of(request)))

    async def rotate(self, request: Request) -> WebhookSecret:
        """A new key. For a day requests have two signatures, by the new one and by the one before."""
        return told(await self.signing.rotate(workspace_of(request)))


def told(keys: SigningKeys) -> WebhookSecret:
    """The keys as they are told."""
    return WebhookSecret(keys.current, keys.previous_until if keys.previous else 0.0)
