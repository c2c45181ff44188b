"""Pinning: a request about a call that is in the journal goes to the version that the call was accepted for.

A request is repeated when its connection broke, and a map sends one after the other; a deploy may come in between.
Under the new version's pool the same call would be another record, and run a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

from squall.ids import created_at
from squall_gateway.call_headers import CallHeaders
from squall_gateway.results import Results
from squall_gateway.targets import Target, Targets
from squall_service.clock import Clock

FRESH_S = 5.0
"""So long after its id was made a call is not looked for: within 10 s the journal knows a repeated input by its message
id, whatever its subject. Most requests are milliseconds old."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """Finds targets, as `Targets` does, for requests that may be about a call accepted before."""

    targets: Targets
    results: Results
    clock: Clock

    async def of(self, call: CallHeaders, workspace: str) -> Target:
        """The target of a call. Raises `NotFoundError` or `InvalidError`."""
        # The caller's clock may be wrong either way.
        if not call.function_id and abs(self.clock.now() - created_at(call.call)) > FRESH_S:
            first = await self.results.first_record(call.call, workspace)
            if first is not None:
                call = call._replace(function_id=first.function)
        return await self.targets.of(call, workspace)
