"""Pinning: a request about a call that is in the journal goes to the version that the call was accepted for.

A request is repeated when its connection broke, and a map sends one after the other; a deploy may come in between.
Under the new version's pool the same call would be another record, and run a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from squall.ids import created_at
from squall_gateway.call_headers import CallHeaders
from squall_gateway.results import Results
from squall_gateway.targets import Target, Targets
from squall_service.clock import Clock

FRESH_S = 5.0
"""So long after its id was made a call is not looked for: within 10 s the journal knows a repeated input by its message
id, whatever its subject. Most requests are milliseconds old."""


MAX_MAPS = 10_000
"""Maps whose version a gateway remembers; the journal has it too."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """Finds targets, as `Targets` does, for requests that may be about a call accepted before."""

    targets: Targets
    results: Results
    clock: Clock
    _maps: dict[tuple[str, str], str] = field(default_factory=dict)
    """Function version by workspace and call, the longest known first."""

    async def of(self, call: CallHeaders, workspace: str) -> Target:
        """The target of a single call. Raises `NotFoundError` or `InvalidError`."""
        # The caller's clock may be wrong either way.
        if not call.function_id and abs(self.clock.now() - created_at(call.call)) > FRESH_S:
            call = await self._as_recorded(call, workspace)
        return await self.targets.of(call, workspace)

    async def of_chunk(self, call: CallHeaders, workspace: str) -> Target:
        """The target of a chunk of inputs: the version of the chunks before it, however young the call is. Raises as
        `of` does."""
        if call.function_id:
            return await self.targets.of(call, workspace)
        known = self._maps.get((workspace, call.call))
        if known is None:
            target = await self.targets.of(await self._as_recorded(call, workspace), workspace)
        else:
            target = await self.targets.of(call._replace(function_id=known), workspace)
        self._maps.setdefault((workspace, call.call), target.function.function_id)
        if len(self._maps) > MAX_MAPS:
            del self._maps[next(iter(self._maps))]
        return target

    async def _as_recorded(self, call: CallHeaders, workspace: str) -> CallHeaders:
        first = await self.results.first_record(call.call, workspace)
        return call if first is None else call._replace(function_id=first.function)
