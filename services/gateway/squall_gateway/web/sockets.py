"""Open WebSockets, and when they have to end: their container is to stop, or another version took its place.

An open one is load, so its container would stay as long as it does. It gets its grace, then the close code 1012, on
which clients connect again, to what is there now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from squall_contracts.functions import FunctionRecord
from squall_contracts.nodes import ClaimState
from squall_gateway.directory import Directory
from squall_gateway.fleet import Fleet


@dataclass(slots=True)
class Group:
    """Those of one container."""

    function: FunctionRecord
    pool: str
    container: str
    grace_s: float
    open: set[asyncio.Future[None]] = field(default_factory=set)
    over_since: float = 0.0
    """0: it goes on."""


class OpenSockets:
    """All of this gateway."""

    def __init__(self, directory: Directory, fleet: Fleet) -> None:
        self._directory = directory
        self._fleet = fleet
        self._groups: dict[str, Group] = {}
        """By container."""

    @contextmanager
    def opened(
        self, function: FunctionRecord, pool: str, container: str, grace_s: float
    ) -> Iterator[asyncio.Future[None]]:
        """A WebSocket that is open within the block; the future is set when it has to end."""
        group = self._groups.setdefault(container, Group(function, pool, container, grace_s))
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group.open.add(leave)
        try:
            yield leave
        finally:
            group.open.discard(leave)
            leave.cancel()
            if not group.open and self._groups.get(container) is group:
                del self._groups[container]

    def tick(self, now: float) -> None:
        """End what has to."""
        for group in self._groups.values():
            if not self._is_over(group):
                group.over_since = 0.0
                continue
            group.over_since = group.over_since or now
            if now - group.over_since < group.grace_s:
                continue
            for leave in group.open:
                if not leave.done():
                    leave.set_result(None)

    def _is_over(self, group: Group) -> bool:
        function = group.function
        app = self._directory.known_app(function.app_id)
        if app is not None and app.record.functions.get(function.spec.name) != function.function_id:
            return True
        claims = self._fleet.claims_of(group.pool)
        return any(claim.container == group.container and claim.state == ClaimState.DRAINING for claim in claims)
