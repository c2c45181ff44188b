"""Secrets over HTTP: made, changed, checked when an app is published; no answer has a value."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.services.gateway.world import World, a_function, a_world, error_of

from squall.http_api.protocol import Header, encode_options
from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall.spec import Options, SecretRef, to_wire
from squall_contracts.secrets import SecretRecord
from squall_gateway.auth import create_token
from squall_service.sealing import Sealer

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "k" * 42 + "A"
CANARY = "canary-value-1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with a_world(tmp_path_factory.mktemp("world"), secrets_key=KEY) as world:
        yield world


async def make(world: World, name: str, **values: str) -> dict[str, Any]:
    answer = await world.http.post(Route.SECRETS, json={"name": name, "values": values})
    assert answer.status_code == 200, answer.text
    assert CANARY not in answer.text
    return dict(answer.json())


async def stored(world: World, name: str) -> SecretRecord:
    entries = [SecretRecord.decode(entry.value) for entry in await world.bus.kv("secrets").entries()]
    return next(record for record in entries if record.name == name)


async def test_values_are_sealed_and_never_told(world: World) -> None:
    made = await make(world, "api", API_KEY=CANARY, REGION="eu")

    assert made["keys"] == ["API_KEY", "REGION"]
    record = await stored(world, "api")
    assert CANARY.encode() not in record.encode()
    assert Sealer(KEY).open(record.sealed, record.purpose) == b'{"API_KEY": "canary-value-1", "REGION": "eu"}'
    for path in (Route.SECRETS, Route.SECRET.format(name="api")):
        told = await world.http.get(path)
        assert "API_KEY" in told.text
        assert CANARY not in told.text


async def test_some_values_are_changed_and_removed_and_the_others_stay(world: World) -> None:
    await make(world, "changing", A="1", B="2")

    answer = await world.http.post(Route.SECRET.format(name="changing"), json={"values": {"B": None, "C": "3"}})

    assert answer.json()["keys"] == ["A", "C"]
    record = await stored(world, "changing")
    assert Sealer(KEY).open(record.sealed, record.purpose) == b'{"A": "1", "C": "3"}'


async def test_a_name_is_taken_until_it_is_replaced_or_deleted(world: World) -> None:
    first = await make(world, "once", A="1")
    body = {"name": "once", "values": {"B": "2"}}

    refused = await world.http.post(Route.SECRETS, json=body)
    replaced = await world.http.post(Route.SECRETS, json={**body, "replace": True})
    gone = await world.http.delete(Route.SECRET.format(name="once"))
    again = await world.http.delete(Route.SECRET.format(name="once"))

    assert (refused.status_code, error_of(refused)["code"]) == (409, "already_exists")
    assert (replaced.json()["keys"], replaced.json()["id"]) == (["B"], first["id"])
    assert gone.status_code == 200
    assert (again.status_code, error_of(again)["code"]) == (404, "not_found")


async def test_equal_values_without_a_name_have_one_id_that_tells_nothing(world: World) -> None:
    async def keep(**values: str) -> str:
        answer = await world.http.post(Route.SECRET_VALUES, json={"values": values})
        return str(answer.json()["id"])

    assert await keep(A="1", B="2") == await keep(B="2", A="1")
    assert await keep(A="1") != await keep(A="2")
    listed = (await world.http.get(Route.SECRETS)).json()["objects"]
    assert all(each["name"] for each in listed), "values without a name are in no list"


@pytest.mark.parametrize(
    ("values", "status", "told"),
    [
        ({"1A": "x"}, 400, "not valid"),
        ({"A-B": "x"}, 400, "not valid"),
        ({"": "x"}, 400, "not valid"),
        ({"A": f"{CANARY}\0"}, 400, "null"),
        ({"SQUALL_TOKEN": CANARY}, 400, "platform"),
        ({"CUDA_VISIBLE_DEVICES": CANARY}, 400, "platform"),
        ({"A": CANARY * 3000}, 413, "characters"),
        ({f"A{n}": "x" * 30_000 for n in range(9)}, 413, "256 KiB"),
    ],
)
async def test_bad_values_are_refused_without_being_shown(
    world: World, values: dict[str, str], status: int, told: str
) -> None:
    for path, body in ((Route.SECRETS, {"name": "bad", "values": values}), (Route.SECRET_VALUES, {"values": values})):
        answer = await world.http.post(path, json=body)
        assert answer.status_code == status
        assert told in error_of(answer)["message"]
        assert CANARY not in answer.text


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65])
async def test_bad_names_are_refused(world: World, name: str) -> None:
    answer = await world.http.post(Route.SECRETS, json={"name": name, "values": {"A": "1"}})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")


async def test_an_app_with_a_secret_that_is_not_there_or_lacks_a_key_is_refused(world: World) -> None:
    await make(world, "half", A="1")

    async def publish(ref: SecretRef) -> dict[str, Any]:
        body = {"name": "shop", "mode": "detached", "functions": [to_wire(a_function(secrets=(ref,)))]}
        answer = await world.http.post(Route.APPS, json=body)
        return error_of(answer) if answer.status_code != 200 else {}

    assert await publish(SecretRef("half", required=("A",))) == {}
    missing = await publish(SecretRef("nowhere"))
    assert missing["code"] == "not_found"
    assert "'double'" in missing["message"]
    assert "squall secret create nowhere" in missing["fix"]
    assert "has no B" in (await publish(SecretRef("half", required=("A", "B"))))["message"]
    assert (await publish(SecretRef("half", environment="test")))["code"] == "not_found"
    assert (await publish(SecretRef(id="st-000000")))["code"] == "not_found"
    assert (await publish(SecretRef(id="*.>")))["code"] == "not_found"


async def test_options_with_a_missing_secret_are_refused_at_the_call(world: World) -> None:
    app = await world.publish()
    headers = {
        Header.FUNCTION: f"{app['app_id']}/double",
        Header.CALL: new_call_id(2),
        Header.OPTIONS: encode_options(Options(secrets=(SecretRef("nowhere"),))),
    }
    answer = await world.http.post(Route.CALLS, headers={**headers, Header.KIND: "spawn"}, content=b"x")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


async def test_another_workspace_sees_nothing(world: World) -> None:
    await make(world, "private", A="1")
    token = await create_token(world.bus, "other", "workspace", "x", now=1.0)
    stranger = await world.client(world.url or str(world.http.base_url), token)

    there = await stranger.get(Route.SECRET.format(name="private"))
    nowhere = await stranger.get(Route.SECRET.format(name="random"))

    assert (there.status_code, nowhere.status_code) == (404, 404)
    assert error_of(there)["message"].replace("private", "random") == error_of(nowhere)["message"]
    assert (await stranger.get(Route.SECRETS)).json() == {"objects": []}
    assert (await stranger.delete(Route.SECRET.format(name="private"))).status_code == 404


async def test_an_environment_shows_its_own_and_not_those_of_one_whose_name_goes_on(world: World) -> None:
    for environment in ("eu", "eu.west"):
        await world.http.post(Route.ENVIRONMENTS, json={"name": environment})
        body = {"name": "place", "environment": environment, "values": {"A": environment}}
        assert (await world.http.post(Route.SECRETS, json=body)).status_code == 200
        await world.http.post("/v1/objects/dicts", json={"name": "place", "environment": environment})

    for path in (Route.SECRETS, "/v1/objects/dicts"):
        for environment in ("eu", "eu.west"):
            told = (await world.http.get(path, params={"environment": environment})).json()["objects"]
            assert [each["environment"] for each in told] == [environment], path


async def test_containers_and_callers_can_neither_list_nor_change(world: World) -> None:
    for scope in ("container", "caller", "service"):
        token = await create_token(world.bus, "main", scope, scope, now=1.0)
        client = await world.client(str(world.http.base_url), token)
        assert (await client.get(Route.SECRETS)).status_code == 403
        assert (await client.post(Route.SECRET.format(name="api"), json={"values": {}})).status_code == 403
        kept = await client.post(Route.SECRET_VALUES, json={"values": {"A": "1"}})
        assert kept.status_code == (200 if scope == "container" else 403)


async def test_a_gateway_without_a_key_says_what_to_do(world: World) -> None:
    _, client = await world.start_gateway(secrets_key="")
    answer = await client.post(Route.SECRETS, json={"name": "x", "values": {"A": CANARY}})
    assert (answer.status_code, error_of(answer)["code"]) == (503, "secrets_key")
    assert CANARY not in answer.text
