"""Sending: one gateway's intake and deliveries, started and drained together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from squall_bus import Bus
from squall_gateway.directory import Directory
from squall_gateway.policy.webhook_tries import Answer
from squall_gateway.results import Results
from squall_gateway.settings import GatewaySettings
from squall_gateway.webhooks.delivering import Delivering
from squall_gateway.webhooks.intake import Intake
from squall_gateway.webhooks.users import WebhookUsers
from squall_service.run import ServiceContext

if TYPE_CHECKING:
    from squall_gateway.webhooks.post import Post


class Sending:
    """What runs."""

    def __init__(
        self,
        settings: GatewaySettings,
        bus: Bus,
        results: Results,
        directory: Directory,
        users: WebhookUsers,
        context: ServiceContext[Any],
    ) -> None:
        self._context, self._drain_s = context, settings.drain_s
        self._intake = Intake(bus, results, directory, context.clock, context.start)
        self._rules = users.rules
        self._post: Post | None = None
        self._delivering = Delivering(
            bus, users.signing, self._send, settings.webhook_retries_s, context.clock, context.start
        )

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if self._post is None:
            from squall_gateway.webhooks.post import Post  # 100 ms and 5 MiB, for those who have webhooks

            self._post = Post(self._rules)
        return await self._post(url, headers, body)

    async def open(self) -> None:
        """Take results and deliveries from now on."""
        self._context.start(self._intake.run(), "gateway webhooks")
        await self._delivering.open()

    async def close(self) -> None:
        """Drain."""
        await self._intake.close()
        await self._delivering.close(self._drain_s)
