"""Roles of tokens, held on every route of the API; environments: names in one are not those in another."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tests.services.gateway.world import World, a_function, call_headers, error_of

from squall.http_api.access import ROLES
from squall.http_api.routes import Route
from squall.spec import to_wire
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_gateway.policy.access import ADMIN, EXCEPTIONS, MEMBER, VIEWER, allows, needed

pytestmark = pytest.mark.asyncio(loop_scope="module")

VIEWERS_POSTS = {("POST", Route.FUNCTION_STATS)}
"""Looking, by POST: whoever adds a route that a viewer may POST to says so here too."""
ADMINS = {
    ("GET", Route.TOKENS),
    ("POST", Route.TOKENS),
    ("DELETE", Route.TOKEN),
    ("POST", Route.ENVIRONMENTS),
    ("DELETE", Route.ENVIRONMENT),
    ("POST", Route.NODE_DRAIN),
    ("POST", Route.NODE_RESUME),
    ("POST", Route.IMAGES_PRUNE),
    ("POST", Route.VOLUME_COLLECTIONS),
    ("POST", Route.WEBHOOK_SECRET_ROTATE),
}


async def a_token(world: World, role: str) -> str:
    answer = await world.http.post(Route.TOKENS, json={"name": role, "role": role})
    assert answer.status_code == 200, answer.text
    assert answer.json()["role"] == role
    return str(answer.json()["token"])


async def test_every_route_is_held_to_the_least_role_that_it_needs(world: World) -> None:
    document = (await world.http.get("/openapi.json")).json()
    routes = [(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs if path[:4] == "/v1/"]
    assert len(routes) > 80
    assert {*EXCEPTIONS} <= {*routes}
    clients = {role: await world.client(str(world.http.base_url), await a_token(world, role)) for role in ROLES}
    for method, route in routes:
        path, looks = re.sub(r"{\w+}", "nobodys-1", route), method in ("GET", "HEAD")
        least = ADMIN if (method, route) in ADMINS else VIEWER if looks or (method, route) in VIEWERS_POSTS else MEMBER
        if (method, route) == ("GET", Route.WEBHOOK_SECRET):
            least = MEMBER
        assert needed(method, path) == least, f"{method} {route}"
        for role in ROLES:
            if allows(role, least):
                continue  # what the allowed ones get is what all other tests are about
            answer = await clients[role].request(method, path)
            assert answer.status_code == 403, f"{role}: {method} {route}: {answer.status_code}"
            if method != "HEAD":
                assert error_of(answer)["code"] == "permission_denied"
                assert f"--role {least}" in error_of(answer)["fix"]


async def test_what_each_role_can_do_works(world: World) -> None:
    viewer, member = [await world.client(str(world.http.base_url), await a_token(world, role)) for role in ROLES[:2]]
    body = {"name": "by-role", "mode": "deployed", "functions": [to_wire(a_function())]}

    assert (await viewer.post(Route.APPS, json=body)).status_code == 403
    app = (await member.post(Route.APPS, json=body)).json()
    assert (await viewer.get(Route.APPS)).json()["apps"]
    headers = call_headers(app, kind="spawn")
    assert (await viewer.post(Route.CALLS, headers=headers, content=b"x")).status_code == 403
    assert (await member.post(Route.CALLS, headers=headers, content=b"x")).status_code == 202
    assert (await member.post(Route.TOKENS, json={"name": "up", "role": "admin"})).status_code == 403
    for spelling in ("/v1/tokens/", "/v1/tokens%0A", "/v1//tokens", "/v1/%74okens"):
        answer = await viewer.get(spelling, follow_redirects=True)
        assert answer.status_code in (403, 404), spelling
        assert '"tokens"' not in answer.text


async def test_tokens_from_before_there_were_roles_may_everything_and_unknown_roles_nothing(world: World) -> None:
    old, odd = "sq-old", "sq-odd"
    for token, role in ((old, ""), (odd, "owner")):
        record = TokenRecord(workspace="main", name=token, scope="workspace", created_at=1.0, role=role)
        await world.bus.kv(TOKENS).put(token_key(token.encode()), record.encode())

    assert (await (await world.client(str(world.http.base_url), old)).get(Route.TOKENS)).status_code == 200
    assert (await (await world.client(str(world.http.base_url), odd)).get(Route.APPS)).status_code == 403
    for wrong in ({"role": "owner"}, {"role": "viewer", "scope": "caller"}):
        answer = await world.http.post(Route.TOKENS, json={"name": "x", **wrong})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")


# ---------------------------------------------------------------------- environments


async def make(world: World, name: str) -> None:
    assert (await world.http.post(Route.ENVIRONMENTS, json={"name": name})).status_code == 200


async def test_nothing_is_made_in_an_environment_that_is_not_there(world: World) -> None:
    app = {"name": "lost", "mode": "deployed", "functions": [to_wire(a_function())], "environment": "nowhere"}
    requests: list[tuple[str, dict[str, Any]]] = [
        (Route.APPS, app),
        (Route.APPS, app | {"mode": "ephemeral"}),
        (Route.SECRETS, {"name": "s", "values": {"A": "1"}, "environment": "nowhere"}),
        *((f"/v1/objects/{kind}", {"name": "o", "environment": "nowhere"}) for kind in ("dicts", "queues", "volumes")),
    ]
    for path, body in requests:
        answer = await world.http.post(path, json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found"), path
        assert "squall environment create nowhere" in error_of(answer)["fix"]


async def test_the_same_names_in_two_environments_are_two_things(world: World) -> None:
    await make(world, "left")
    ids = {}
    for environment in ("main", "left"):
        body = {"name": "twin", "mode": "deployed", "functions": [to_wire(a_function())], "environment": environment}
        ids[environment] = [(await world.http.post(Route.APPS, json=body)).json()["app_id"]]
        for kind in ("dicts", "queues", "volumes"):
            made = await world.http.post(f"/v1/objects/{kind}", json={"name": "twin", "environment": environment})
            ids[environment].append(made.json()["id"])
    assert not set(ids["main"]) & set(ids["left"])
    for environment, (app, *_) in ids.items():
        listed = (await world.http.get(Route.APPS, params={"environment": environment})).json()["apps"]
        assert [row["app_id"] for row in listed if row["name"] == "twin"] == [app]


async def test_an_environment_is_listed_and_removed_once_it_is_empty(world: World) -> None:
    await make(world, "short")
    assert (await world.http.post(Route.ENVIRONMENTS, json={"name": "short"})).status_code == 409
    assert (await world.http.post(Route.ENVIRONMENTS, json={"name": "no spaces"})).status_code == 400
    await world.http.post("/v1/objects/dicts", json={"name": "kept", "environment": "short"})

    refused = await world.http.delete(Route.ENVIRONMENT.format(environment="short"))
    listed = (await world.http.get(Route.ENVIRONMENTS)).json()["environments"]
    await world.http.delete("/v1/objects/dicts/kept", params={"environment": "short"})
    removed = await world.http.delete(Route.ENVIRONMENT.format(environment="short"))
    again = await world.http.delete(Route.ENVIRONMENT.format(environment="short"))

    assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
    assert "dict 'kept'" in error_of(refused)["message"]
    assert {"main", "short"} <= {row["name"] for row in listed}
    assert (removed.status_code, again.status_code) == (200, 404)
    assert (await world.http.delete(Route.ENVIRONMENT.format(environment="main"))).status_code == 400
