"""Reading what was accepted while the replica that answers has not seen it yet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from tests.services.gateway.world import SHARDS, World, call_headers

from squall.ids import new_call_id
from squall_bus import Bus, Stored
from squall_contracts.functions import pool_id
from squall_gateway.results import Results
from squall_service.clock import SystemClock

pytestmark = pytest.mark.asyncio(loop_scope="module")


class BehindReplica:
    """A bus whose direct reads are answered by a replica that has nothing yet; everything else is the leader's."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def get_many(self, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
        return {}

    async def read(self, stream: str, filter_subject: str | None = None, **more: Any) -> AsyncIterator[Stored]:
        return
        yield


async def test_a_call_that_a_replica_has_not_seen_is_found_at_the_leader(world: World) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    await world.http.post("/v1/calls", headers=call_headers(app, kind="spawn", call=call), content=b"x")
    results = Results(cast("Bus", BehindReplica(world.bus)), SystemClock())

    found = [await results.journal_record(call, 0, "main"), await results.first_record(call, "main")]

    assert [record and record.call for record in found] == [call, call]
    assert await results.exists(call, "main")
    assert await results.pool_of(call, 0, "main") == pool_id(app["functions"]["double"])


async def test_neither_another_workspace_nor_another_call_is_found_there(world: World) -> None:
    app, call = await world.publish(), new_call_id(SHARDS)
    await world.http.post("/v1/calls", headers=call_headers(app, kind="spawn", call=call), content=b"x")
    results = Results(cast("Bus", BehindReplica(world.bus)), SystemClock())

    assert not await results.exists(call, "other")
    assert not await results.exists(new_call_id(SHARDS), "main")
    assert await results.first_record(call, "other") is None
