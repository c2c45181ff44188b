"""What code in containers may say about webhooks: who has no network must not have one by the gateway's."""

from __future__ import annotations

from dataclasses import dataclass

from squall.errors import PermissionDeniedError
from squall_contracts.functions import TokenRecord
from squall_gateway.directory import Directory


@dataclass(frozen=True, slots=True)
class ContainerHooks:
    """Judges calls that containers make with a webhook of their own."""

    directory: Directory

    async def check(self, token: TokenRecord) -> None:
        """Raises `PermissionDeniedError` when a function of the token's app has no network, or only a part of it: a
        token is its app's, so it may be that one who asks."""
        app = await self.directory.app(token.app_id, token.workspace)
        for function_id in app.record.functions.values():
            spec = (await self.directory.function(function_id, token.workspace)).spec
            if spec.block_network or spec.outbound_cidr_allowlist is not None:
                raise PermissionDeniedError(
                    f"{spec.name!r} of this app may not use the network: its containers name no webhooks",
                    fix="Declare `webhook=` on the function that is called.",
                )
