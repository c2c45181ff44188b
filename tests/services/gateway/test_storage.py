"""New calls are refused before the bus's store is full; accepted ones finish, and calls are taken again after that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
from tests.services.gateway.world import SHARDS, World, a_function, a_world, call_headers, error_of
from tests.support.eventually import eventually

from squall_contracts import subjects, topology
from squall_contracts.functions import pool_id

SMALL_ACCOUNT = (
    'accounts { A: { jetstream: { max_file: 24MB, max_mem: 8MB }, users: [ { user: "u", password: "p" } ] } }\n'
    'no_auth_user: "u"'
)
LAYOUT = topology.build("local", SHARDS)
# What streams may grow to is reserved in the account.
SMALL = replace(LAYOUT, streams=tuple(replace(s, max_bytes=min(s.max_bytes, 1 << 20)) for s in LAYOUT.streams))
RECORD_BYTES, RECORDS = 200_000, 105


async def fill(world: World) -> None:
    """Something else than calls takes more than 80 % of the account."""
    subject = subjects.usage(world.bus.topology.region, "fu-1")
    await asyncio.gather(*(world.bus.publish(subject, bytes(RECORD_BYTES)) for _ in range(RECORDS)))


async def test_calls_are_refused_at_80_percent_of_the_account_and_taken_again_below(tmp_path: Path) -> None:
    async with a_world(tmp_path, server_config=SMALL_ACCOUNT, layout=SMALL) as world:
        app, agent = await world.publish(a_function()), world.agent()

        async def spawn() -> httpx.Response:
            return await world.http.post("/v1/calls", headers=call_headers(app, kind="spawn"), content=b"x")

        async def answered(status: int) -> httpx.Response | None:
            answer = await spawn()
            return answer if answer.status_code == status else None

        accepted = await spawn()
        await fill(world)
        refused = await eventually(lambda: answered(507))
        assert error_of(refused)["code"] == "storage_full"
        assert "% full" in error_of(refused)["message"]
        assert error_of(refused)["fix"]
        assert refused.headers["retry-after"]
        assert (await world.http.get("/v1/status")).json()["storage_full"]

        await agent.serve(pool_id(app["functions"]["double"]))
        call = accepted.json()["call"]
        result = await world.http.get(f"/v1/calls/{call}/result?wait=10")
        assert result.status_code == 200, result.text

        await world.bus.purge(subjects.usage_stream("local"), ">")
        await eventually(lambda: answered(accepted.status_code))
        await agent.stop()


async def test_calls_are_refused_when_the_disk_of_the_bus_is_nearly_full(tmp_path: Path) -> None:
    more_than_any_disk = 1 << 40
    async with a_world(tmp_path, bus_store=str(tmp_path), reserve_mib=more_than_any_disk) as world:
        app = await world.publish(a_function())
        answer = await world.http.post("/v1/calls", headers=call_headers(app, kind="spawn"), content=b"x")
        assert (answer.status_code, error_of(answer)["code"]) == (507, "storage_full")
        assert str(tmp_path) in error_of(answer)["message"]
