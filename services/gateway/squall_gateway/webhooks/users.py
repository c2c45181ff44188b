"""Who has webhooks: checks their URLs, and sees to it that results of their workspaces are handed on.

The consumers of a workspace are there before the first call that has a webhook is accepted, so that no end of one can
be missed, whoever records it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from squall.errors import InvalidError
from squall.spec import FunctionSpec, check_webhook
from squall_bus import Bus, ConsumerSpec, KeyExists
from squall_contracts import subjects
from squall_contracts.webhooks import WEBHOOKS, WebhookUser, results_consumer, user_key
from squall_gateway.policy.webhook_targets import TargetRules, literal, networks
from squall_gateway.settings import GatewaySettings
from squall_gateway.webhooks.signing import Signing
from squall_images.egress import own_addresses
from squall_service.clock import Clock

ACK_WAIT_S = 30.0
"""Of a result whose gateway died: long for a read and a write."""


@dataclass(slots=True)
class WebhookUsers:
    """Workspaces that have webhooks."""

    bus: Bus
    signing: Signing
    rules: TargetRules
    clock: Clock
    _open: set[str] = field(default_factory=set)

    def check(self, url: str) -> str:
        """`url` itself. Raises `InvalidError` for what can never be delivered."""
        check_webhook(url)
        if (address := literal(url)) is not None and (refusal := self.rules.refusal(*address)):
            raise InvalidError(
                f"webhook {url!r}: {address[0]} {refusal}", fix="Use the address of a public web server."
            )
        return url

    async def declared(self, specs: tuple[FunctionSpec, ...], workspace: str) -> None:
        """Functions with webhooks are about to be published."""
        urls = {self.check(spec.webhook) for spec in specs if spec.webhook}
        for spec in specs:
            if spec.webhook and all(method.web is not None for method in spec.methods):
                raise InvalidError(
                    f"function {spec.name!r} answers web requests: it has no calls that a webhook could be about",
                    fix="Remove webhook=.",
                )
        if urls:
            await self.open(workspace)

    async def open(self, workspace: str) -> None:
        """From here on every end of a call of this workspace is looked at. Raises `SecretsKeyError` without a key."""
        if workspace in self._open:
            return
        await self.signing.keys(workspace)
        region, shards = self.bus.topology.region, range(self.bus.topology.shards)
        await asyncio.gather(*(self._ensure(region, shard, workspace) for shard in shards))
        try:
            record = WebhookUser(workspace, self.clock.now())
            await self.bus.kv(WEBHOOKS).create(user_key(workspace), record.encode())
        except KeyExists:
            pass
        self._open.add(workspace)

    async def _ensure(self, region: str, shard: int, workspace: str) -> None:
        wanted = ConsumerSpec(
            name=results_consumer(workspace),
            filter_subject=subjects.results_of_workspace(region, shard, workspace),
            ack_wait_s=ACK_WAIT_S,
            prioritized=False,
            only_new=True,
        )
        await self.bus.ensure_consumer(subjects.results_stream(region, shard), wanted)


def rules_of(settings: GatewaySettings) -> TargetRules:
    """What the operator allows, and the addresses of this machine."""
    return TargetRules(networks(settings.webhook_allowed), own_addresses())
