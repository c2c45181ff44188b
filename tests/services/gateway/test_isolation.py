"""Workspaces do not see each other: every route that takes an id answers about another workspace's as about one that
does not exist. The table is held against the API's own description, so that a new route cannot be forgotten."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from tests.services.gateway.test_webhooks import KEY
from tests.services.gateway.world import SHARDS, TinyAgent, World, a_function, a_world, call_headers, succeeded
from tests.support.eventually import eventually

from squall.http_api.protocol import FrameKind, Header, frames
from squall.http_api.routes import Route
from squall.ids import new_call_id, new_id, shard_of
from squall.spec import ImageSpec, ImageStep, ScheduleSpec, to_wire
from squall_contracts import subjects
from squall_contracts.builds import ImageRecord
from squall_contracts.calls import CallRequested
from squall_contracts.functions import pool_id
from squall_contracts.nodes import ContainerClaim, claim_key
from squall_contracts.schedules import SCHEDULES, ScheduleRecord, generation_of, schedule_id
from squall_gateway.auth import create_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SCHEDULE = ScheduleSpec(cron="0 6 * * *")
IMAGE = ImageSpec(steps=(ImageStep("pip_install", {"packages": ["theirs"]}),))
ENTRIES = {"content-type": "application/octet-stream"}


@dataclass(frozen=True)
class Two:
    """Workspace `theirs`, full of things; and a client of workspace `mine`."""

    world: World
    mine: httpx.AsyncClient
    theirs: httpx.AsyncClient
    ids: dict[str, str]
    """Of their things, by what a route calls them."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    async with a_world(tmp_path_factory.mktemp("two"), secrets_key=KEY) as world:
        clients = [
            await world.client(
                str(world.http.base_url), await create_token(world.bus, name, "workspace", name, now=1.0)
            )
            for name in ("mine", "theirs")
        ]
        yield Two(world, *clients, await _things(world, clients[1]))


async def _things(world: World, theirs: httpx.AsyncClient) -> dict[str, str]:
    """One of everything, in workspace `theirs`."""
    body = {"name": "their-app", "mode": "deployed", "functions": [to_wire(a_function(schedule=SCHEDULE))]}
    app = (await theirs.post(Route.APPS, json=body)).json()
    headers = call_headers(app, kind="spawn")
    assert (await theirs.post(Route.CALLS, headers=headers, content=b"x")).status_code == 202
    call = headers[Header.CALL]
    stream = subjects.journal_stream("local", shard_of(call))
    [stored] = (await world.bus.get_many(stream, [subjects.call("local", "*", call, 0)])).values()
    request = CallRequested.decode(stored.data)
    await TinyAgent(world.bus, succeeded).finish(request, succeeded(request))
    found = {"app": app["app_id"], "call": call, "function": "double"}
    for kind in ("dicts", "queues", "volumes"):
        made = await theirs.post(f"/v1/objects/{kind}", json={"name": f"their-{kind}"})
        found[kind] = made.json()["id"]
    found["sha256"] = hashlib.sha256(b"their block").hexdigest()
    for route in (Route.VOLUME_BLOCK, Route.BLOB):
        stored = await theirs.put(route.format(sha256=found["sha256"]), content=b"their block")
        assert stored.status_code == 200
    secret = {"name": "their-secret", "values": {"A": "1"}}
    assert (await theirs.post(Route.SECRETS, json=secret)).status_code == 200
    found["token"] = (await theirs.post(Route.TOKENS, json={"name": "their-token"})).json()["id"]
    await theirs.post(Route.ENVIRONMENTS, json={"name": "their-env"})
    found["environment"] = "their-env"
    found["schedule"] = schedule_id(app["app_id"], "double")
    record = ScheduleRecord(
        schedule_id=found["schedule"],
        app_id=app["app_id"],
        app_name="their-app",
        workspace="theirs",
        environment="main",
        function="double",
        spec=SCHEDULE,
        generation=generation_of(SCHEDULE),
        since=1.0,
        handled=2.0,
    )
    await world.bus.kv(SCHEDULES).put(found["schedule"], record.encode())
    found["image"] = IMAGE.id
    image = ImageRecord(image=IMAGE.id, state="ready", updated_at=1.0, workspace="theirs", spec=IMAGE)
    await world.bus.kv("images").put(IMAGE.id, image.encode())
    await theirs.put(Route.IMAGE_NAME.format(name="their-image:1"), json={"image": IMAGE.id})
    await _a_container(world, theirs, app, found)
    return found


async def _a_container(world: World, theirs: httpx.AsyncClient, app: dict[str, Any], found: dict[str, str]) -> None:
    pool = pool_id(app["functions"]["double"])
    found["container"] = new_id("co")
    claim = ContainerClaim(
        pool=pool,
        ordinal=0,
        container=found["container"],
        node="n1",
        function_id=app["functions"]["double"],
        app_id=app["app_id"],
        workspace="theirs",
        state="ready",
        created_at=1.0,
        updated_at=1.0,
    )
    await world.bus.kv("containers").put(claim_key(pool, 0), claim.encode())

    async def seen() -> bool:
        return bool((await theirs.get(Route.CONTAINERS)).json()["containers"])

    await eventually(seen)


RANDOM = {
    "app": lambda: new_id("ap"),
    "call": lambda: new_call_id(SHARDS),
    "function": lambda: "double",
    "dicts": lambda: new_id("di"),
    "queues": lambda: new_id("qu"),
    "volumes": lambda: new_id("vo"),
    "token": lambda: "tk-0123456789abcdef",
    "schedule": lambda: "sc-0123456789abcdef0123",
    "image": lambda: "im-0123456789abcdef01234567",
    "container": lambda: new_id("co"),
    "sha256": lambda: secrets.token_hex(32),
    "name": lambda: "nobodys-name",
    "environment": lambda: "nobodys-env",
}
"""Ids like theirs, of nothing."""

JSON: dict[tuple[str, str], Any] = {
    ("POST", Route.APP_TAGS): {"tags": {}},
    ("POST", Route.APP_ROLLBACK): {"version": 1},
    ("POST", Route.CONTAINER_EXEC): {"command": ["true"]},
    ("POST", Route.SECRET): {"values": {"A": "2"}},
    ("POST", Route.OBJECT_RENAME): {"name": "another"},
    ("POST", Route.VOLUME_COMMITS): {"changes": []},
    ("PUT", Route.IMAGE_NAME): {"image": "{image}"},
    ("POST", Route.FUNCTION_MAP): {"inputs": [[1]]},
}
"""Bodies of requests that would not be understood without one."""
FRAMES = {
    ("POST", Route.DICT_OPS): frames.encode(FrameKind.ENTRY, {"op": "get", "key": "YQ=="}, b""),
    ("POST", Route.QUEUE_ITEMS): frames.encode(FrameKind.ENTRY, {}, b"item"),
}
QUERY = {Route.VOLUME_FILE: "?path=/x", Route.CALL_RESULT: "?wait=0", Route.CALL_OUTPUT: "?wait=0"}
KIND_OF = {"/v1/volumes/": "volumes", "/v1/dicts/": "dicts", "/v1/queues/": "queues", "/v1/object-ids/": "dicts"}
NAMES = {
    Route.SECRET: "their-secret",
    Route.IMAGE_NAME: "their-image:1",
    "/v1/objects/{kind}/{name}": "their-dicts",
    "/v1/objects/{kind}/{name}/rename": "their-dicts",
}
NOT_OF_A_WORKSPACE = {
    ("PUT", Route.BLOB): "stores one of its own; the others are in the sweep",
    ("PUT", Route.VOLUME_BLOCK): "stores one of its own; the others are in the sweep",
    ("GET", "/v1/objects/{kind}"): "a list; see below",
    ("POST", "/v1/objects/{kind}"): "makes one of its own",
    ("POST", Route.NODE_DRAIN): "machines belong to the operator; a matter of roles",
    ("POST", Route.NODE_RESUME): "likewise",
}
STREAMS_FOR_ANY_ID = {
    ("GET", Route.CALL_RESULTS): "goes on until its client closes, also of a call that is not there yet",
    ("POST", Route.CALL_INPUTS): "makes the call, in the workspace of whoever asks",
}


def filled(two: Two, method: str, route: str, ids: dict[str, Any], name: str) -> tuple[str, Any]:
    """The path and body of a request, with these ids."""
    kind = next((kind for prefix, kind in KIND_OF.items() if route.startswith(prefix)), "")
    values = {**ids, "object": ids.get(kind, ""), "name": name, "kind": "dicts"}
    path = re.sub(r"{(\w+)}", lambda found: quote(str(values[found[1]]), safe=""), route)
    path += QUERY.get(route, "")
    body = JSON.get((method, route))
    if body == {"image": "{image}"}:
        body = {"image": ids["image"]}
    return path, body


def plain(answer: httpx.Response, *names: str) -> tuple[int, str]:
    """Status and body, without what differs from request to request."""
    text = answer.text.replace(answer.headers.get("x-request-id", "\0"), "REQUEST")
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = text.replace(name, "ID")
    return answer.status_code, re.sub(r"tk-[0-9a-f]+|sc-[0-9a-f]+|im-[0-9a-f]+", "ID", text)


async def test_every_route_answers_about_another_workspaces_id_as_about_a_random_one(two: Two) -> None:
    document = (await two.mine.get("/openapi.json")).json()
    routes = [(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs if "{" in path]
    assert len(routes) > 50
    checked, wrong = 0, []
    for method, route in routes:
        if (method, route) in NOT_OF_A_WORKSPACE or (method, route) in STREAMS_FOR_ANY_ID:
            continue
        random: dict[str, Any] = {what: make() for what, make in RANDOM.items()}
        of_theirs, body = filled(two, method, route, two.ids, NAMES.get(route, ""))
        tag = ":1" if route == Route.IMAGE_NAME else ""
        of_nobody, other = filled(two, method, route, random, random["name"] + tag)
        raw = FRAMES.get((method, route))
        theirs = await two.mine.request(method, of_theirs, json=body, content=raw)
        nobodys = await two.mine.request(method, of_nobody, json=other, content=raw)
        hidden = (random["name"] + tag, *two.ids.values(), *map(str, random.values()), *NAMES.values())
        if plain(theirs, *hidden) != plain(nobodys, *hidden) or theirs.status_code != 404:
            wrong.append(f"{method} {route}: {plain(theirs, *hidden)}, of nothing {plain(nobodys, *hidden)}")
        checked += 1
    assert not wrong, "\n".join(wrong)
    assert checked == len(routes) - len(NOT_OF_A_WORKSPACE) - len(STREAMS_FOR_ANY_ID)


async def test_ids_in_queries_bodies_and_headers_of_another_workspace_are_as_random_ones(two: Two) -> None:
    for app, image in ((two.ids["app"], two.ids["image"]), (RANDOM["app"](), RANDOM["image"]())):
        headers = {Header.FUNCTION: f"{app}/double", Header.CALL: new_call_id(SHARDS), Header.KIND: "spawn"}
        answers = [
            await two.mine.post(Route.CALLS, headers=headers, content=b"x"),
            await two.mine.get(Route.FUNCTIONS, params={"app": app, "name": "double"}),
            await two.mine.get(Route.CONTAINERS, params={"app": app}),
            await two.mine.get(Route.LETTERS, params={"app": app}),
            await two.mine.post(Route.LETTERS_REDRIVE, json={"app": app}),
            await two.mine.get(Route.CALLS, params={"app": app}),
            await two.mine.post(
                Route.APPS, json={"name": "x", "mode": "detached", "app_id": app, "functions": [to_wire(a_function())]}
            ),
            await two.mine.put(Route.IMAGE_NAME.format(name="stolen:1"), json={"image": image}),
        ]
        assert [answer.status_code for answer in answers] == [404] * len(answers), [a.text for a in answers]


async def test_lists_of_one_workspace_have_nothing_of_another(two: Two) -> None:
    document = (await two.mine.get("/openapi.json")).json()
    lists = [
        path for path, verbs in document["paths"].items() if "get" in verbs and "{" not in path and path[:4] == "/v1/"
    ]
    assert {Route.APPS, Route.CALLS, Route.TOKENS, Route.SECRETS, Route.IMAGES, Route.WEBHOOKS} <= set(lists)
    for path in lists:
        answer = await two.mine.get(path, params={"app": "", "name": ""} if path == Route.FUNCTIONS else None)
        for secret in (*two.ids.values(), "their-"):
            assert secret == "double" or secret not in answer.text, f"{path} tells {secret}"


async def test_their_own_workspace_has_it_all(two: Two) -> None:
    """Otherwise the sweep above would prove nothing."""
    for route in (Route.APP_STATUS, Route.CALL, Route.IMAGE, Route.CALL_RESULT, Route.BLOB, Route.VOLUME_BLOCK):
        path, _ = filled(two, "GET", route, two.ids, "")
        assert (await two.theirs.get(path)).status_code == 200, route
    for route, name in NAMES.items():
        if route != "/v1/objects/{kind}/{name}/rename":
            path, _ = filled(two, "GET", route, two.ids, name)
            assert (await two.theirs.get(path)).status_code == 200, route
    paused = await two.theirs.post(Route.SCHEDULE_PAUSE.format(schedule=two.ids["schedule"]))
    assert paused.json()["paused"] is True
    assert two.ids["token"] in (await two.theirs.get(Route.TOKENS)).text
