"""The blob store over HTTP: verified, whole or not at all, in bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.services.gateway.world import (
    TinyAgent,
    World,
    a_world,
    call_headers,
    error_of,
    only_frame,
    sha256,
    succeeded,
)
from tests.support.eventually import eventually

from squall.errors import InvalidError, NotFoundError
from squall_contracts.functions import pool_id
from squall_gateway.blobs import Blobs, remove_abandoned

pytestmark = pytest.mark.asyncio(loop_scope="module")


def files(world: World) -> list[str]:
    return sorted(str(file.name) for file in (world.folder / "blobs").rglob("*") if file.is_file())


async def test_what_was_put_is_what_one_gets(world: World) -> None:
    data = b"squall" * 50_000
    path = f"/v1/blobs/{sha256(data)}"

    assert (await world.http.head(path)).status_code == 404
    put = await world.http.put(path, content=data)
    again = await world.http.put(path, content=data)
    head, got = await world.http.head(path), await world.http.get(path)

    assert (put.status_code, put.json()) == (200, {"sha256": sha256(data), "size": len(data)})
    assert again.status_code == 200
    assert head.headers["content-length"] == str(len(data))
    assert got.content == data
    assert (world.folder / "blobs/workspaces/main" / sha256(data)[:2] / sha256(data)).read_bytes() == data


async def test_an_empty_blob_is_a_blob(world: World) -> None:
    path = f"/v1/blobs/{sha256(b'')}"
    assert (await world.http.put(path)).status_code == 200
    assert (await world.http.get(path)).content == b""


async def test_content_with_another_hash_is_refused_and_nothing_is_left(world: World) -> None:
    before = files(world)

    answer = await world.http.put(f"/v1/blobs/{sha256(b'a')}", content=b"b" * 3_000_000)

    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")
    assert files(world) == before
    assert (await world.http.get(f"/v1/blobs/{sha256(b'a')}")).status_code == 404


async def test_an_upload_that_is_cut_leaves_nothing(world: World) -> None:
    before = files(world)

    async def cut() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        raise httpx.WriteError("the cable")

    with pytest.raises(httpx.WriteError):
        await world.http.put(f"/v1/blobs/{sha256(b'cut')}", content=cut())

    await eventually(lambda: files(world) == before)


@pytest.mark.parametrize("name", ["short", "A" * 64, "g" * 64])
async def test_names_that_are_no_hash_are_refused(world: World, name: str) -> None:
    answer = await world.http.put(f"/v1/blobs/{name}", content=b"x")

    assert answer.status_code == 400


async def test_a_blob_above_the_limit_is_refused_announced_or_not(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_payload_bytes=1000) as world:

        async def unannounced() -> AsyncIterator[bytes]:
            yield b"x" * 1001

        data = b"x" * 1001
        for content in (data, unannounced()):
            answer = await world.http.put(f"/v1/blobs/{sha256(data)}", content=content)
            assert (answer.status_code, error_of(answer)["code"]) == (413, "request_size")
        assert files(world) == []


async def test_a_call_carries_a_reference_and_its_result_may_too(world: World, agent: TinyAgent) -> None:
    app, data = await world.publish(), b"argument" * 20_000
    ref = f"{sha256(data)}:{len(data)}"
    await world.http.put(f"/v1/blobs/{sha256(data)}", content=data)
    await agent.serve(pool_id(app["functions"]["double"]))

    await world.http.post("/v1/calls?wait=10", headers=call_headers(app, blob=ref))
    wrong = await world.http.post("/v1/calls", headers=call_headers(app, blob=f"{sha256(data)}:5"))

    assert (agent.seen[0].blob, agent.seen[0].payload) == (ref, b"")
    assert "the reference says 5" in error_of(wrong)["message"]


async def test_a_call_may_bring_its_blob_as_its_body(world: World, agent: TinyAgent) -> None:
    app, data = await world.publish(), os.urandom(300_000)
    ref = f"{sha256(data)}:{len(data)}"
    await agent.serve(pool_id(app["functions"]["double"]))

    damaged = await world.http.post("/v1/calls", headers=call_headers(app, blob=ref), content=data[1:])
    assert (damaged.status_code, error_of(damaged)["code"]) == (400, "invalid")
    assert sha256(data) not in files(world)

    answer = await world.http.post("/v1/calls?wait=10", headers=call_headers(app, blob=ref), content=data)

    assert answer.status_code == 200
    assert [(request.blob, request.payload) for request in agent.seen] == [(ref, b"")]
    assert sha256(data) in files(world)


async def test_a_blob_above_the_limit_does_not_come_in_with_a_call(tmp_path: Path) -> None:
    async with a_world(tmp_path, max_payload_bytes=100_000) as world:
        app, data = await world.publish(), os.urandom(200_000)
        for size in (len(data), 50_000):  # told, and lied about
            headers = call_headers(app, blob=f"{sha256(data)}:{size}")
            answer = await world.http.post("/v1/calls", headers=headers, content=data)
            assert (answer.status_code, error_of(answer)["code"]) == (413, "request_size")
        assert files(world) == []


@pytest.mark.parametrize(("size", "embedded"), [(1_000_000, True), (5_000_000, False), (0, False)])
async def test_a_result_in_the_blob_store_comes_with_the_answer_if_it_is_not_too_large(
    world: World, agent: TinyAgent, size: int, embedded: bool
) -> None:
    app, data = await world.publish(), os.urandom(size)
    ref = f"{sha256(data or b'gone')}:{size or 4}"  # nothing is there of the last one
    if data:
        await world.http.put(f"/v1/blobs/{sha256(data)}", content=data)
    agent.answer = lambda request: replace(succeeded(request, b""), blob=ref)
    await agent.serve(pool_id(app["functions"]["double"]))

    frame = only_frame((await world.http.post("/v1/calls?wait=10", headers=call_headers(app), content=b"x")).content)

    assert (frame.meta["blob"], frame.payload) == (ref, data if embedded else b"")


@pytest.mark.slow
async def test_a_large_blob_passes_in_bounded_memory(world: World) -> None:
    size, part = 256 << 20, b"\x5a" * (1 << 20)
    digest = hashlib.sha256()
    for _ in range(size >> 20):
        digest.update(part)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield part

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = f"/v1/blobs/{digest.hexdigest()}"
    assert (await world.http.put(path, content=parts(), timeout=60)).status_code == 200
    received, again = 0, hashlib.sha256()
    async with world.http.stream("GET", path, timeout=60) as answer:
        async for chunk in answer.aiter_raw():
            received += len(chunk)
            again.update(chunk)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    assert (received, again.hexdigest()) == (size, digest.hexdigest())
    assert grown_mib < 64


async def test_a_store_behind_a_url_keeps_the_same_promises() -> None:
    blobs = Blobs("memory:///", {}, 10_000_000)

    async def data(content: bytes) -> AsyncIterator[bytes]:
        yield content
        await asyncio.sleep(0)

    large = b"x" * 6_000_000
    assert await blobs.put(sha256(large), data(large)) == 6_000_000
    with pytest.raises(InvalidError):
        await blobs.put(sha256(b"a"), data(b"b"))
    with pytest.raises(NotFoundError):
        await blobs.get(sha256(b"a"))
    size, chunks = await blobs.get(sha256(large))
    assert (size, b"".join([chunk async for chunk in chunks])) == (6_000_000, large)
    assert await blobs.size(sha256(b"a")) is None


async def test_an_upload_that_ends_while_another_gateway_opens_the_folder_keeps_nobody_from_it(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")  # listed, and not there when it is looked at
    for name, at in (("abandoned", 1.0), ("present", 1e6)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (at, at))
    remove_abandoned(tmp_path)
    assert not (tmp_path / "abandoned").exists()
    assert (tmp_path / "present").exists()
