"""Blobs belong to their workspace: whoever names another one's is told what is told about a hash of nothing. What was
stored where blobs of all workspaces were once is found for the records that name it, and for nothing else."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.services.gateway.world import (
    TinyAgent,
    World,
    a_function,
    a_generator,
    call_headers,
    input_frames,
    only_frame,
    sha256,
    succeeded,
)

from squall.errors import ServiceError
from squall.http_api.protocol import FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.spec import CodeRef, ImageSpec, ImageStep, to_wire
from squall_contracts import subjects
from squall_contracts.blobs import workspace_place
from squall_contracts.builds import ImageRecord, scoped
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.functions import pool_id
from squall_contracts.objects import DICTS, DictEntry, QueueItem, dict_key, partition_token
from squall_gateway.auth import create_token
from squall_gateway.blob_places import BlobPlaces
from squall_gateway.blobs import Blobs

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = base64.b64encode(b"key").decode()


@dataclass(frozen=True)
class Stranger:
    """A workspace of its own beside that of the world, with an app, a dict and a queue."""

    http: httpx.AsyncClient
    app: dict[str, Any]
    dict: str
    queue: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stranger(world: World) -> Stranger:
    http = await client(world, "stranger", "workspace")
    body = {"name": "shop", "mode": "detached", "functions": [to_wire(a_function())]}
    app = (await http.post(Route.APPS, json=body)).json()
    ids = [(await http.post(f"/v1/objects/{kind}", json={"name": "o"})).json()["id"] for kind in ("dicts", "queues")]
    return Stranger(http, app, *ids)


async def client(world: World, workspace: str, scope: str) -> httpx.AsyncClient:
    token = await create_token(world.bus, workspace, scope, "test", now=1.0)
    return await world.client(str(world.http.base_url), token)


async def stored(world: World, content: bytes) -> str:
    """Theirs."""
    assert (await world.http.put(f"/v1/blobs/{sha256(content)}", content=content)).status_code == 200
    return sha256(content)


def stored_before(world: World, content: bytes) -> str:
    """By a gateway of the release before."""
    name = sha256(content)
    place = world.folder / "blobs" / name[:2]
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    return name


async def test_a_blob_of_another_workspace_is_as_one_that_does_not_exist(world: World, stranger: Stranger) -> None:
    content = os.urandom(70_000)
    theirs, nobodys = await stored(world, content), secrets.token_hex(32)
    for method in ("HEAD", "GET"):
        answers = [await stranger.http.request(method, f"/v1/blobs/{name}") for name in (theirs, nobodys)]
        assert told(answers[0], theirs) == told(answers[1], nobodys)
        assert answers[0].status_code == 404

    # Who has the content may store it, and has one of its own.
    assert (await stranger.http.put(f"/v1/blobs/{theirs}", content=content)).status_code == 200
    assert (await stranger.http.get(f"/v1/blobs/{theirs}")).content == content
    places = [f"workspaces/{name}/{theirs[:2]}/{theirs}" for name in ("main", "stranger")]
    assert all((world.folder / "blobs" / place).is_file() for place in places)


async def test_sizes_that_are_remembered_are_the_workspaces(world: World, stranger: Stranger) -> None:
    theirs = await stored(world, os.urandom(100))
    assert (await world.http.head(f"/v1/blobs/{theirs}")).status_code == 200
    assert (await stranger.http.head(f"/v1/blobs/{theirs}")).status_code == 404


Naming = Callable[[Stranger, str], Awaitable[httpx.Response]]
"""A request that names a blob of 100 bytes."""


async def in_a_call(stranger: Stranger, name: str) -> httpx.Response:
    headers = call_headers(stranger.app, blob=f"{name}:100", kind="spawn")
    return await stranger.http.post(Route.CALLS, headers=headers)


async def in_a_waiting_call(stranger: Stranger, name: str) -> httpx.Response:
    return await stranger.http.post(f"{Route.CALLS}?wait=1", headers=call_headers(stranger.app, blob=f"{name}:100"))


async def in_a_keyed_call(stranger: Stranger, name: str) -> httpx.Response:
    headers = {**call_headers(stranger.app, blob=f"{name}:100"), Header.IDEMPOTENCY_KEY: secrets.token_hex(4)}
    return await stranger.http.post(Route.CALLS, headers=headers)


async def in_a_map(stranger: Stranger, name: str) -> httpx.Response:
    headers = call_headers(stranger.app, kind="map")
    body = frames.encode(FrameKind.INPUT, {"index": 0, "blob": f"{name}:100"}, b"")
    return await stranger.http.post(f"/v1/calls/{headers[Header.CALL]}/inputs", headers=headers, content=body)


async def in_many_inputs(stranger: Stranger, name: str) -> httpx.Response:
    headers = call_headers(stranger.app, kind="spawn")
    meta = {"first": 0, "sizes": [1, 0], "blobs": {"1": f"{name}:100"}}
    body = frames.encode(FrameKind.INPUTS, meta, b"x")
    return await stranger.http.post(f"/v1/calls/{headers[Header.CALL]}/inputs", headers=headers, content=body)


async def in_a_dict(stranger: Stranger, name: str) -> httpx.Response:
    body = frames.encode(FrameKind.ENTRY, {"op": "put", "key": KEY, "blob": f"{name}:100"}, b"")
    return await stranger.http.post(Route.DICT_OPS.format(object=stranger.dict), content=body)


async def in_a_claim_of_a_dict(stranger: Stranger, name: str) -> httpx.Response:
    meta = {"op": "put", "key": KEY, "absent": True, "request": "r-1", "blob": f"{name}:100"}
    body = frames.encode(FrameKind.ENTRY, meta, b"")
    return await stranger.http.post(Route.DICT_OPS.format(object=stranger.dict), content=body)


async def in_a_queue(stranger: Stranger, name: str) -> httpx.Response:
    body = frames.encode(FrameKind.ENTRY, {"blob": f"{name}:100"}, b"")
    return await stranger.http.post(Route.QUEUE_ITEMS.format(object=stranger.queue), content=body)


async def in_a_dict_together(stranger: Stranger, name: str) -> httpx.Response:
    meta = {"op": "put", "object": stranger.dict, "key": KEY, "blob": f"{name}:100"}
    return await stranger.http.post(Route.ENTRIES, content=frames.encode(FrameKind.ENTRY, meta, b""))


async def in_a_queue_together(stranger: Stranger, name: str) -> httpx.Response:
    meta = {"op": "enqueue", "object": stranger.queue, "blob": f"{name}:100", "request": "r-1"}
    return await stranger.http.post(Route.ENTRIES, content=frames.encode(FrameKind.ENTRY, meta, b""))


async def as_code(stranger: Stranger, name: str) -> httpx.Response:
    code = CodeRef(bundle_sha256=name, module="m", qualname="f", bundle_bytes=100)
    body = {"name": "thief", "mode": "detached", "functions": [to_wire(replace(a_function(), code=code))]}
    return await stranger.http.post(Route.APPS, json=body)


def an_image(name: str) -> ImageSpec:
    files = {"sha256": name, "bytes": 100}
    return ImageSpec(steps=(ImageStep("base"), ImageStep("add_local", {"files": files})))


async def in_an_image(stranger: Stranger, name: str) -> httpx.Response:
    return await stranger.http.post(Route.IMAGES, json={"image": to_wire(an_image(name))})


async def in_the_image_of_a_function(stranger: Stranger, name: str) -> httpx.Response:
    functions = [to_wire(a_function(image=an_image(name)))]
    return await stranger.http.post(Route.APPS, json={"name": "thief", "mode": "detached", "functions": functions})


async def in_code_of_an_image(stranger: Stranger, name: str) -> httpx.Response:
    step = ImageStep("run_function", {"function": "f", "source_key": "k", "_code": {"sha256": name, "bytes": 100}})
    return await stranger.http.post(Route.IMAGES, json={"image": to_wire(ImageSpec(steps=(step,)))})


@pytest.mark.parametrize(
    "naming",
    [
        in_a_call,
        in_a_waiting_call,
        in_a_keyed_call,
        in_a_map,
        in_many_inputs,
        in_a_dict,
        in_a_claim_of_a_dict,
        in_a_queue,
        in_a_dict_together,
        in_a_queue_together,
        as_code,
        in_an_image,
        in_the_image_of_a_function,
        in_code_of_an_image,
    ],
)
async def test_what_names_another_workspaces_blob_is_answered_as_what_names_none(
    world: World, stranger: Stranger, naming: Naming
) -> None:
    theirs, before = await stored(world, os.urandom(100)), stored_before(world, os.urandom(100))
    nobodys = secrets.token_hex(32)
    of_nobody = told(await naming(stranger, nobodys), nobodys)
    assert "is not there" in of_nobody[1]
    for name in (theirs, before):
        assert told(await naming(stranger, name), name) == of_nobody
        assert (await stranger.http.get(f"/v1/blobs/{name}")).status_code == 404


def told(answer: httpx.Response, name: str) -> tuple[int, str]:
    """Status and body, without what differs from request to request."""
    text = answer.text.replace(answer.headers.get("x-request-id", "\0"), "REQUEST").replace(name, "HASH")
    return answer.status_code, text


async def test_an_image_that_was_asked_for_is_not_to_be_had_by_the_hash_of_its_files(
    world: World, stranger: Stranger
) -> None:
    image = an_image(await stored(world, os.urandom(100)))
    record = ImageRecord(image=image.id, state="ready", updated_at=1.0, workspace="main", spec=image)
    await world.bus.kv("images").put(image.id, record.encode())

    mine = await world.http.post(Route.IMAGES, json={"image": to_wire(image)})
    theirs = await stranger.http.post(Route.IMAGES, json={"image": to_wire(image)})

    assert json.loads(mine.content) == {"image": image.id}
    assert "is not there" in theirs.text
    assert (await stranger.http.get(Route.IMAGE.format(image=image.id))).status_code == 404


async def test_an_image_of_before_is_deployed_again_without_its_files(world: World) -> None:
    image = an_image(stored_before(world, os.urandom(100)))
    record = ImageRecord(image=image.id, state="ready", updated_at=1.0, workspace="main", spec=image)
    await world.bus.kv("images").put(image.id, record.encode())

    assert (await world.http.post(Route.IMAGES, json={"image": to_wire(image)})).json() == {"image": image.id}
    await world.publish(a_function(image=image))


def with_code(name: str) -> ImageSpec:
    """Where the code of its step lies is no part of its id."""
    step = ImageStep("run_function", {"function": "f", "source_key": "k", "_code": {"sha256": name, "bytes": 100}})
    return ImageSpec(steps=(step,))


async def test_who_asked_for_an_image_before_may_not_name_another_workspaces_blob_as_its_code_now(
    world: World, stranger: Stranger
) -> None:
    workspace = "stranger"
    own, theirs, before = os.urandom(100), await stored(world, os.urandom(100)), stored_before(world, os.urandom(100))
    name = sha256(own)
    assert (await stranger.http.put(f"/v1/blobs/{name}", content=own)).is_success
    asked = scoped(with_code(name), workspace, "main")
    record = ImageRecord(image=asked.id, state="failed", updated_at=1.0, workspace=workspace, spec=asked)
    await world.bus.kv("images").put(asked.id, record.encode())

    for other in (theirs, before):
        again = await stranger.http.post(Route.IMAGES, json={"image": to_wire(with_code(other))})
        assert "is not there" in again.text
        functions = [to_wire(a_function(each, image=with_code(of))) for each, of in (("f", name), ("g", other))]
        published = {"name": "thief", "mode": "detached", "functions": functions}
        assert "is not there" in (await stranger.http.post(Route.APPS, json=published)).text
        assert (await stranger.http.get(f"/v1/blobs/{other}")).status_code == 404


async def test_an_image_names_files_by_hashes_alone(stranger: Stranger) -> None:
    answer = await stranger.http.post(Route.IMAGES, json={"image": to_wire(with_code("../../etc/passwd"))})
    assert "is not a SHA-256" in answer.text


async def test_an_image_of_before_with_code_is_deployed_again_without_its_files(world: World) -> None:
    image = with_code(stored_before(world, os.urandom(100)))
    record = ImageRecord(image=image.id, state="ready", updated_at=1.0, workspace="main", spec=image)
    await world.bus.kv("images").put(image.id, record.encode())

    await world.publish(a_function(image=image), name="older")


# ---------------------------------------------------------------- results


def answering(name: str, size: int, **more: Any) -> Callable[[CallRequested], CallResult]:
    """An agent whose results are that blob."""
    return lambda request: replace(succeeded(request, b""), blob=f"{name}:{size}", **more)


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_a_result_that_names_another_workspaces_blob_brings_nothing(
    world: World, stranger: Stranger, agent: TinyAgent, size: int
) -> None:
    theirs = await stored(world, os.urandom(size))
    agent.answer = answering(theirs, size)
    await agent.serve(pool_id(stranger.app["functions"]["double"]))
    answer = await stranger.http.post("/v1/calls?wait=10", headers=call_headers(stranger.app), content=b"x")
    assert only_frame(answer.content).payload == b""
    assert (await stranger.http.get(f"/v1/blobs/{theirs}")).status_code == 404

    agent.answer = answering(theirs, size, encoding="json")
    path = f"/v1/apps/{stranger.app['app_id']}/functions/double/call"
    answer = await stranger.http.post(path, json={"args": []})
    assert (answer.status_code, sha256(answer.content) == theirs) == (404, False)


@pytest.mark.parametrize("size", [100_000, 3_000_000])
async def test_a_result_of_before_is_found_when_it_is_asked_for(world: World, agent: TinyAgent, size: int) -> None:
    content = os.urandom(size)
    name, app = stored_before(world, content), await world.publish()
    agent.answer = answering(name, size)
    await agent.serve(pool_id(app["functions"]["double"]))
    assert (await world.http.get(f"/v1/blobs/{name}")).status_code == 404, "named by a request"

    answer = await world.http.post("/v1/calls?wait=10", headers=call_headers(app), content=b"x")

    frame = only_frame(answer.content)
    assert frame.payload in (b"", content)
    assert (await world.http.get(f"/v1/blobs/{frame.meta['blob'].partition(':')[0]}")).content == content
    assert (world.folder / "blobs" / name[:2] / name).samefile(
        world.folder / "blobs" / workspace_place("main") / name[:2] / name
    ), "its bytes are there once"


async def test_results_of_a_map_are_told_while_the_store_is_away(
    world: World, agent: TinyAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, name = await world.publish(name="away"), secrets.token_hex(32)
    agent.answer = answering(name, 100_000)
    await agent.serve(pool_id(app["functions"]["double"]))
    headers = call_headers(app, kind="map")

    async def away(*_: object) -> int:
        raise ServiceError("the blob store does not answer")

    monkeypatch.setattr(Blobs, "size", away)
    path = f"/v1/calls/{headers[Header.CALL]}"
    assert (await world.http.post(f"{path}/inputs", headers=headers, content=input_frames(b"x"))).is_success
    decoder = frames.Decoder()
    async with asyncio.timeout(30), world.http.stream("GET", f"{path}/results?cursor=0") as told:
        async for part in told.aiter_raw():
            if found := [frame for frame in decoder.feed(part) if frame.kind in (FrameKind.RESULT, FrameKind.ERROR)]:
                break
    assert (found[0].kind, found[0].meta["blob"]) == (FrameKind.RESULT, f"{name}:100000")


async def test_a_file_of_another_user_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3_000_000)
    name = sha256(content)
    (tmp_path / name[:2]).mkdir()
    (tmp_path / name[:2] / name).write_bytes(content)

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "protected_hardlinks")

    monkeypatch.setattr(os, "link", refused)
    places = BlobPlaces(Blobs(str(tmp_path), {}, 1))
    await places.recorded("main", [f"{name}:{len(content)}"])
    assert (tmp_path / workspace_place("main") / name[:2] / name).read_bytes() == content


@pytest.mark.parametrize("size", [100_000, 9_000_000])
async def test_a_result_of_before_is_found_in_json(world: World, agent: TinyAgent, size: int) -> None:
    content = json.dumps("x" * size + secrets.token_hex(4)).encode()
    name, app = stored_before(world, content), await world.publish()
    agent.answer = answering(name, len(content), encoding="json")
    await agent.serve(pool_id(app["functions"]["double"]))
    body = (await world.http.post(f"/v1/apps/{app['app_id']}/functions/double/call", json={"args": []})).json()
    found = body["result"] if "result" in body else (await world.http.get(body["result_at"])).json()
    assert found == json.loads(content)


async def test_results_of_a_map_of_before_are_found(world: World, agent: TinyAgent) -> None:
    content = os.urandom(80_000)
    name, app = stored_before(world, content), await world.publish()
    agent.answer = answering(name, len(content))
    await agent.serve(pool_id(app["functions"]["double"]))
    headers = call_headers(app, kind="map")
    call = headers[Header.CALL]
    body = frames.encode(FrameKind.INPUT, {"index": 0}, b"x")
    assert (await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=body)).status_code == 200
    decoder = frames.Decoder()
    async with world.http.stream("GET", f"/v1/calls/{call}/results") as answer:
        async for part in answer.aiter_raw():
            if found := [each for each in decoder.feed(part) if each.kind == FrameKind.RESULT]:
                break
    assert found[0].meta["blob"] == f"{name}:{len(content)}"
    assert (await world.http.get(f"/v1/blobs/{name}")).content == content


async def test_items_of_an_agent_of_before_are_found(world: World, agent: TinyAgent) -> None:
    content = os.urandom(80_000)
    name, app = stored_before(world, content), await world.publish(a_generator())

    def one_item(request: CallRequested) -> CallResult:
        agent.send_item(request, "1-abcdef", 0, b"", f"{name}:{len(content)}")
        return succeeded(request, b"", items=1)

    agent.answer = one_item
    await agent.serve(pool_id(app["functions"]["count"]))
    headers = call_headers(app, "count", kind="generator")
    answer = await world.http.post(Route.CALLS, headers=headers, content=b"x")
    found = frames.Decoder().feed(answer.content)
    assert [each.meta.get("blob") for each in found if each.kind == FrameKind.ITEM] == [f"{name}:{len(content)}"]
    assert (await world.http.get(f"/v1/blobs/{name}")).content == content


# ---------------------------------------------------------------- dicts, queues, dead letters


@pytest.mark.parametrize("how", ["get", "pop", "items", "together"])
async def test_a_value_of_a_dict_of_before_is_found(world: World, how: str) -> None:
    content = os.urandom(500)
    name, key = stored_before(world, content), b"key"
    made = (await world.http.post("/v1/objects/dicts", json={"name": f"of-before-{how}"})).json()["id"]
    entry = DictEntry(key, b"", f"{name}:500")
    await world.bus.kv(DICTS).put(dict_key("main", made, key), entry.encode())
    if how == "items":
        answer = await world.http.get(Route.DICT_ITEMS.format(object=made))
    else:
        op = "pop" if how == "pop" else "get"
        body = frames.encode(FrameKind.ENTRY, {"op": op, "object": made, "key": KEY, "request": "r-1"}, b"")
        route = Route.ENTRIES if how == "together" else Route.DICT_OPS.format(object=made)
        answer = await world.http.post(route, content=body)
    assert frames.Decoder().feed(answer.content)[0].meta["blob"] == f"{name}:500"
    assert (await world.http.get(f"/v1/blobs/{name}")).content == content


@pytest.mark.parametrize("how", ["take", "items", "together"])
async def test_an_item_of_a_queue_of_before_is_found(world: World, how: str) -> None:
    content = os.urandom(500)
    name = stored_before(world, content)
    made = (await world.http.post("/v1/objects/queues", json={"name": f"of-before-{how}"})).json()["id"]
    subject = subjects.queue_items("local", "main", made, partition_token(""))
    await world.bus.publish(subject, QueueItem(b"", f"{name}:500").encode(), ttl_s=3600)
    match how:
        case "items":
            answer = await world.http.get(Route.QUEUE_ITEMS.format(object=made))
        case "take":
            answer = await world.http.post(Route.QUEUE_TAKEN.format(object=made))
        case _:
            body = frames.encode(FrameKind.ENTRY, {"op": "take", "object": made, "request": "r-1"}, b"")
            answer = await world.http.post(Route.ENTRIES, content=body)
    assert frames.Decoder().feed(answer.content)[0].meta["blob"] == f"{name}:500"
    assert (await world.http.get(f"/v1/blobs/{name}")).content == content


# ---------------------------------------------------------------- containers, agents, builders


async def test_a_container_has_the_blobs_of_its_workspace_and_no_others(world: World) -> None:
    theirs, before = await stored(world, os.urandom(100)), stored_before(world, os.urandom(100))
    inside, elsewhere = await client(world, "main", "container"), await client(world, "stranger", "container")
    assert (await inside.get(f"/v1/blobs/{theirs}")).status_code == 200
    said = {Header.WORKSPACE: "main"}
    for name in (theirs, before, secrets.token_hex(32)):
        assert (await elsewhere.get(f"/v1/blobs/{name}")).status_code == 404
        assert (await elsewhere.get(f"/v1/blobs/{name}", headers=said)).status_code == 404, "only services are believed"


async def test_a_service_moves_blobs_of_the_workspace_that_it_names(world: World, stranger: Stranger) -> None:
    service, content = await client(world, "main", "service"), os.urandom(100)
    name, said = sha256(content), {Header.WORKSPACE: "stranger"}
    assert (await service.put(f"/v1/blobs/{name}", content=content, headers=said)).status_code == 200
    assert (await stranger.http.get(f"/v1/blobs/{name}")).content == content
    assert (await world.http.get(f"/v1/blobs/{name}")).status_code == 404
    assert (await service.get(f"/v1/blobs/{name}", headers={Header.WORKSPACE: "main"})).status_code == 404
    assert (await service.get(f"/v1/blobs/{name}", headers=said)).content == content

    # What it names is what records name: those of before too.
    before = stored_before(world, os.urandom(100))
    assert (await stranger.http.head(f"/v1/blobs/{before}")).status_code == 404
    assert (await service.head(f"/v1/blobs/{before}", headers=said)).status_code == 200


async def test_a_service_of_the_release_before_finds_arguments_and_stores_results(
    world: World, agent: TinyAgent
) -> None:
    service, content, result = await client(world, "main", "service"), os.urandom(100), os.urandom(100_000)
    arguments = await stored(world, content)
    assert (await service.head(f"/v1/blobs/{arguments}")).headers["content-length"] == "100"
    assert (await service.get(f"/v1/blobs/{arguments}")).content == content
    assert (await service.get(f"/v1/blobs/{secrets.token_hex(32)}")).status_code == 404
    assert (await service.put(f"/v1/blobs/{sha256(result)}", content=result)).status_code == 200

    app = await world.publish()
    agent.answer = answering(sha256(result), len(result))
    await agent.serve(pool_id(app["functions"]["double"]))
    answer = await world.http.post("/v1/calls?wait=10", headers=call_headers(app), content=b"x")
    assert only_frame(answer.content).payload == result


# ---------------------------------------------------------------- the store


@pytest.mark.parametrize("workspace", ["..", "a/b", "a.b", "", "x" * 300])
async def test_no_name_of_a_workspace_leads_out_of_its_place(workspace: str) -> None:
    place = workspace_place(workspace)
    assert place.count("/") == 1
    assert len(place) < 100
    assert place != workspace_place("." + workspace)
    assert ".." not in place


async def test_places_in_a_folder(tmp_path: Path) -> None:
    await check_places(str(tmp_path / "blobs"), {})


async def check_places(where: str, options: dict[str, str]) -> None:
    """What each workspace has in that store, and has of what lay there before."""
    places, content = BlobPlaces(Blobs(where, options, 10_000_000)), os.urandom(3_000_000)
    name = sha256(content)
    await places.of("a").put(name, once(content))
    assert await places.of("a").read(name) == content
    assert await places.of("b").size(name) is await places.older.size(name) is None
    assert await (await places.anywhere(name)).read(name) == content

    before = os.urandom(100)
    await places.older.put(sha256(before), once(before))
    await places.recorded("b", [None, f"{sha256(before)}:100", f"{sha256(b'nothing')}:7"])
    assert await places.of("b").read(sha256(before)) == before
    assert await places.of("a").size(sha256(before)) is None
    assert await places.read("a", sha256(before)) == before
    fresh = BlobPlaces(Blobs(where, options, 10_000_000))  # remembers nothing
    assert [await fresh.of(each).size(sha256(before)) for each in ("a", "b", "c")] == [100, 100, None]


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content
