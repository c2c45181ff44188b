"""What is refused, with which answer, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.services.gateway.world import (
    World,
    a_function,
    a_generator,
    a_world,
    call_headers,
    error_of,
    input_frames,
    sha256,
)
from tests.support.eventually import eventually

from squall.http_api.protocol import Header, encode_parameters
from squall.ids import new_call_id
from squall_contracts import subjects
from squall_contracts.functions import pool_id

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def journal(world: World) -> int:
    infos = [
        await world.bus.stream_info(subjects.journal_stream("local", shard))
        for shard in range(world.bus.topology.shards)
    ]
    return sum(info.messages for info in infos)


@pytest.mark.parametrize(
    ("change", "status", "code", "words"),
    [
        ({Header.FUNCTION: "nonsense"}, 400, "invalid", "<app id>/<function name>"),
        ({Header.FUNCTION: "ap-0123/double"}, 404, "not_found", "ap-0123"),
        ({Header.FUNCTION_ID: "fu-0123"}, 404, "not_found", "fu-0123"),
        ({Header.METHOD: "other"}, 400, "invalid", "other"),
        ({Header.METHOD: "a b"}, 400, "invalid", "not a name"),
        ({Header.KIND: "sometimes"}, 400, "invalid", "sometimes"),
        ({Header.ENCODING: "xml"}, 400, "invalid", "xml"),
        ({Header.BLOB: "short:3"}, 400, "invalid", "blob reference"),
        ({Header.CALL: "fc-1"}, 400, "invalid", "not a call id"),
        ({Header.CALL: new_call_id(1)[:-2] + "77"}, 400, "invalid", "shard"),
        ({Header.PARENT: "fc-1"}, 400, "invalid", "not a call id"),
        ({Header.PARAMETERS: "%%%"}, 400, "invalid", "parameters"),
        ({Header.PARAMETERS: encode_parameters({"x": "y" * 20000})}, 413, "request_size", "parameters"),
        ({Header.KIND: "generator"}, 400, "invalid", "not a generator"),
        ({Header.CLIENT_VERSION: "99.0.0"}, 426, "version", "99.0.0"),
    ],
)
async def test_a_call_with_a_bad_header_is_refused_by_name(
    world: World, change: dict[str, str], status: int, code: str, words: str
) -> None:
    app, before = await world.publish(), await journal(world)

    answer = await world.http.post("/v1/calls", headers=call_headers(app) | change, content=b"x")

    error = error_of(answer)
    assert (answer.status_code, error["code"]) == (status, code)
    assert words in error["message"]
    assert error["fix"]
    assert await journal(world) == before


async def test_unknown_functions_are_named(world: World) -> None:
    app = await world.publish()

    answer = await world.http.post("/v1/calls", headers=call_headers(app, "triple"), content=b"x")

    assert answer.status_code == 404
    assert "triple" in error_of(answer)["message"]


async def test_a_payload_above_the_inline_limit_is_refused_and_pointed_to_the_blob_store(world: World) -> None:
    app = await world.publish()

    answer = await world.http.post("/v1/calls", headers=call_headers(app), content=b"x" * 65537)

    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_size")
    assert "/v1/blobs" in error_of(answer)["fix"]


async def test_a_reference_to_a_blob_that_is_not_there_is_refused(world: World) -> None:
    app, before = await world.publish(), await journal(world)
    missing = f"{sha256(b'nothing')}:7"

    answer = await world.http.post("/v1/calls", headers=call_headers(app, blob=missing))
    chunk = await world.http.post(f"/v1/calls/{new_call_id(1)}/inputs", headers=call_headers(app), content=b"junk")

    assert (answer.status_code, "not there" in error_of(answer)["message"]) == (400, True)
    assert chunk.status_code == 400
    assert await journal(world) == before


async def test_a_generator_is_not_called_like_a_function(world: World) -> None:
    app = await world.publish(a_generator())

    answer = await world.http.post("/v1/calls", headers=call_headers(app, "count", kind="spawn"))

    assert (answer.status_code, error_of(answer)["fix"]) == (400, "Call it with `remote_gen`.")


async def test_calls_of_a_stopped_app_are_refused(world: World) -> None:
    app = await world.publish()
    stopped = await world.http.post(f"/v1/apps/{app['app_id']}/stop", json={"reason": "done"})

    answer = await world.http.post("/v1/calls", headers=call_headers(app))

    assert stopped.json() == {"state": "stopped"}
    assert (answer.status_code, error_of(answer)["code"]) == (409, "conflict")
    assert "stopped" in error_of(answer)["message"]


async def test_a_pool_with_too_many_pending_inputs_takes_no_more_until_some_have_finished(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_pending=3, max_pending_sync=2) as world:
        app = await world.publish()
        agent = world.agent()
        for _ in range(2):
            accepted = await world.http.post("/v1/calls?wait=0.01", headers=call_headers(app))
            assert accepted.status_code == 202

        sync = await refused(world, call_headers(app))
        spawned = await world.http.post("/v1/calls", headers=call_headers(app, kind="spawn"))
        full = await refused(world, call_headers(app, kind="spawn"))
        await agent.serve(pool_id(app["functions"]["double"]))

        async def accepts_again() -> bool:
            return (await world.http.post("/v1/calls", headers=call_headers(app))).status_code == 202

        assert (sync.status_code, error_of(sync)["code"]) == (429, "resource_exhausted")
        assert "max_pending_sync" in error_of(sync)["fix"]
        assert sync.headers["retry-after"] == "1"
        assert spawned.status_code == 202
        assert error_of(full)["data"]["limit"] == 3
        await eventually(accepts_again)
        await agent.stop()


async def test_a_repeated_request_about_an_accepted_call_is_not_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_pending_sync=2) as world:
        app = await world.publish()
        chunk, one = new_call_id(2), call_headers(app)
        inputs = {"url": f"/v1/calls/{chunk}/inputs", "headers": call_headers(app, kind="map")}
        await world.http.post(**inputs, content=input_frames(b"1"))
        await world.http.post("/v1/calls", headers=one)
        await refused(world, call_headers(app))

        again = await world.http.post("/v1/calls", headers=one)
        chunk_again = await world.http.post(**inputs, content=input_frames(b"1"))
        larger = await world.http.post(**inputs, content=input_frames(b"1", b"2"))
        await world.http.post(f"/v1/apps/{app['app_id']}/stop", json={"reason": "done"})
        after_the_end = await world.http.post("/v1/calls", headers=one)

        assert (again.status_code, chunk_again.status_code, after_the_end.status_code) == (202, 200, 202)
        assert larger.status_code == 429
        assert await journal(world) == 2


async def refused(world: World, headers: dict[str, str]) -> httpx.Response:
    """The first refusal; the queue hears of the journal a moment later."""
    answer = await world.http.post("/v1/calls", headers=headers)
    assert answer.status_code == 429, answer.text
    return answer


async def test_a_map_chunk_beyond_the_limit_is_refused_as_a_whole(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_pending_sync=2) as world:
        app = await world.publish()
        answer = await world.http.post(
            f"/v1/calls/{new_call_id(2)}/inputs",
            headers=call_headers(app, kind="map"),
            content=input_frames(b"1", b"2", b"3"),
        )

        assert answer.status_code == 413  # not 429: however long the caller waited, three would never be taken at once
        assert "may have 2 pending" in error_of(answer)["message"]
        assert await journal(world) == 0


@pytest.mark.slow
async def test_calls_are_refused_when_the_bus_has_been_away_for_a_second(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        app = await world.publish(a_function())
        await world.server.kill()

        async def noticed() -> bool:
            return (await world.http.get("/v1/info")).status_code == 503

        await eventually(noticed)
        answer = await world.http.post("/v1/calls", headers=call_headers(app))

        assert (answer.status_code, error_of(answer)["retryable"]) == (503, True)
        assert "not been reachable" in error_of(answer)["message"]
        assert answer.headers["retry-after"] == "1"
        ready = await world.http.get("/readyz")
        assert (ready.status_code, "bus" in ready.json()) == (503, True)
        await world.server.start()
