"""Webhooks: the end of every call with one is told, signed, at least once, whoever records the end."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from standardwebhooks import Webhook, WebhookVerificationError
from tests.services.gateway.receiver import Receiver, Request, a_receiver
from tests.services.gateway.world import (
    SHARDS,
    TinyAgent,
    World,
    a_function,
    a_world,
    call_headers,
    error_of,
    input_frames,
    succeeded,
)
from tests.support.eventually import eventually

from squall.http_api.protocol import Header
from squall.http_api.routes import Route
from squall.ids import new_call_id, shard_of
from squall.spec import MethodSpec, WebSpec, to_wire
from squall_bus import ConsumerSpec, Delivery
from squall_contracts import subjects
from squall_contracts.calls import CallRequested
from squall_contracts.functions import TOKENS, TokenRecord, pool_id, token_key
from squall_contracts.webhooks import WEBHOOKS, WebhookDelivery, deliveries_of, delivery_key, results_consumer
from squall_gateway.auth import create_token
from squall_gateway.directory import Directory
from squall_gateway.policy.webhook_targets import TargetRules, networks
from squall_gateway.policy.webhook_tries import Answer
from squall_gateway.policy.webhook_turns import SHARE
from squall_gateway.results import Results
from squall_gateway.webhooks.delivering import Delivering
from squall_gateway.webhooks.intake import Intake
from squall_gateway.webhooks.post import Post
from squall_gateway.webhooks.signing import SigningKeys, new_key
from squall_service.clock import SystemClock

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY = base64.b64encode(b"k" * 32).decode()
FEW = {"secrets_key": KEY, "webhook_allowed": ["127.0.0.1"], "webhook_retries_s": (0.05, 0.05)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with a_world(tmp_path_factory.mktemp("world"), **FEW) as world:
        await world.start_gateway(**FEW)  # two of them share the work
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with a_receiver() as receiver:
        yield receiver


async def a_call(world: World, app: dict[str, Any], **headers: str) -> CallRequested:
    """A spawned call, as it lies in the journal."""
    made = call_headers(app, kind="spawn", **headers)
    answer = await world.http.post("/v1/calls", headers=made, content=b"x")
    assert answer.status_code == 202, answer.text
    return await accepted(world, made[Header.CALL])


async def accepted(world: World, call: str) -> CallRequested:
    stream = subjects.journal_stream("local", shard_of(call))
    [stored] = (await world.bus.get_many(stream, [subjects.call("local", "*", call, 0)])).values()
    return CallRequested.decode(stored.data)


async def end(world: World, request: CallRequested, outcome: str = "succeeded") -> None:
    """Somebody records the end, and dies: nobody is told, nothing is acked."""
    error = None if outcome == "succeeded" else {"kind": "user", "type": "ValueError", "message": "a canary in it"}
    result = replace(succeeded(request, b"a result"), outcome=outcome, error=error)
    await TinyAgent(world.bus, succeeded).finish(replace(request, reply_to=None), result)


async def secret(world: World) -> str:
    return str((await world.http.get(Route.WEBHOOK_SECRET)).json()["secret"])


async def deliveries(world: World, call: str = "", **query: Any) -> list[dict[str, Any]]:
    path = Route.WEBHOOKS_OF_CALL.format(call=call) if call else Route.WEBHOOKS
    answer = await world.http.get(path, params=query)
    return list(answer.json()["deliveries"]) if answer.status_code == 200 else []


async def settled(world: World, call: str, state: str) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        return next((row for row in await deliveries(world, call) if row["state"] == state), None)

    row = await eventually(found)
    assert row is not None
    return row


async def test_the_end_of_a_call_is_told_once_and_the_reference_library_accepts_it(
    world: World, receiver: Receiver
) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="told")
    request = await a_call(world, app)

    await end(world, request)
    await settled(world, request.call, "delivered")

    [told] = receiver.of(request.call)
    assert Webhook(await secret(world)).verify(told.body.decode(), told.headers) == told.event
    assert (told.path, told.headers["content-type"]) == ("/ends", "application/json")
    assert told.headers["webhook-id"] == f"{request.call}-0"
    assert told.event["type"] == "call.succeeded"
    assert told.event["data"] | {"app": "told", "function": "double", "version": 1} == told.event["data"]
    assert told.event["data"]["result"] == f"/v1/calls/{request.call}/output?index=0"
    assert b"a result" not in told.body


async def test_what_was_changed_is_signed_otherwise_or_is_old_is_refused_by_the_library(
    world: World, receiver: Receiver
) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="verified")
    request = await a_call(world, app)
    await end(world, request)
    await settled(world, request.call, "delivered")
    [told] = receiver.of(request.call)
    text, mine = told.body.decode(), Webhook(await secret(world))
    old = datetime.now(UTC) - timedelta(minutes=6)
    late = told.headers | {
        "webhook-timestamp": str(int(old.timestamp())),
        "webhook-signature": mine.sign(told.headers["webhook-id"], old, text),
    }

    for wrong, headers, body in (
        (mine, told.headers, text.replace("succeeded", "failed")),
        (mine, told.headers | {"webhook-id": f"{request.call}-1"}, text),
        (mine, late, text),
        (Webhook("whsec_" + base64.b64encode(b"z" * 32).decode()), told.headers, text),
    ):
        with pytest.raises(WebhookVerificationError):
            wrong.verify(body, headers)


@pytest.mark.parametrize("outcome", ["failed", "timed_out", "expired"])
async def test_every_way_to_end_is_told_without_what_users_code_says(
    world: World, receiver: Receiver, outcome: str
) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="ends")
    request = await a_call(world, app)

    await end(world, request, outcome)
    await settled(world, request.call, "delivered")

    [told] = receiver.of(request.call)
    assert told.event["type"] == f"call.{outcome}"
    assert told.event["data"]["error"] == {"kind": "user", "type": "ValueError"}
    assert b"canary" not in told.body


async def test_a_cancel_that_a_gateway_records_is_told_too(world: World, receiver: Receiver) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="cancelled")
    request = await a_call(world, app)

    await world.http.post(f"/v1/calls/{request.call}/cancel")
    await settled(world, request.call, "delivered")

    assert [each.event["type"] for each in receiver.of(request.call)] == ["call.cancelled"]


async def test_a_call_has_a_webhook_of_its_own_in_headers_and_in_json(world: World, receiver: Receiver) -> None:
    app = await world.publish(a_function(webhook=receiver.url("/declared")), a_function("plain"), name="own")
    by_header = await a_call(world, app, webhook=receiver.url("/header"))
    plain = await a_call(world, app, function="plain")
    path = Route.FUNCTION_SPAWN.format(app=app["app_id"], function="plain")
    answer = await world.http.post(path, json={"args": [1], "webhook": receiver.url("/json")})
    by_json = await accepted(world, answer.json()["call"])

    for request in (by_header, plain, by_json):
        await end(world, request)
    await settled(world, by_header.call, "delivered")
    await settled(world, by_json.call, "delivered")

    assert [each.path for each in receiver.of(by_header.call)] == ["/header"]
    assert [each.path for each in receiver.of(by_json.call)] == ["/json"]
    assert await deliveries(world, plain.call) == []


async def test_each_input_of_a_map_has_an_end_of_its_own(world: World, receiver: Receiver, agent: TinyAgent) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="mapped")
    headers = call_headers(app, kind="map")
    call = headers.pop(Header.CALL)
    await world.http.post(f"/v1/calls/{call}/inputs", headers=headers, content=input_frames(*[b"x"] * 40))

    await agent.serve(pool_id(app["functions"]["double"]))
    await eventually(lambda: len(receiver.of(call)) >= 40)

    assert sorted(each.headers["webhook-id"] for each in receiver.of(call)) == sorted(f"{call}-{n}" for n in range(40))


async def test_containers_without_a_network_have_none_by_webhooks(world: World, receiver: Receiver) -> None:
    free = await world.publish(name="free")
    closed = await world.publish(a_function(isolation="sandbox", block_network=True), name="closed")
    answers = []
    for app in (free, closed):
        token = f"sq-container-{app['app_id']}"
        record = TokenRecord("main", "c", "container", 1.0, app_id=app["app_id"])
        await world.bus.kv(TOKENS).put(token_key(token.encode()), record.encode())
        container = await world.client(str(world.http.base_url), token)
        for named in ({"webhook": receiver.url("/stolen-data")}, {}):
            made = call_headers(free, kind="spawn", **named)
            answers.append(await container.post("/v1/calls", headers=made, content=b"x"))

    assert [answer.status_code for answer in answers] == [202, 202, 403, 202]
    assert error_of(answers[2])["code"] == "permission_denied"


async def test_a_failing_receiver_is_asked_again_by_the_schedule_then_it_is_a_dead_letter_that_can_be_redriven(
    world: World, receiver: Receiver
) -> None:
    receiver.status = lambda _: "503 Service Unavailable"
    app = await world.publish(a_function(webhook=receiver.url()), name="failing")
    request = await a_call(world, app)
    await end(world, request)

    row = await settled(world, request.call, "dead")
    listed = await deliveries(world, state="dead")
    first = list(receiver.of(request.call))
    receiver.status = lambda _: "200 OK"
    again = await world.http.post(Route.WEBHOOKS_REDRIVE, json={"call": request.call})
    await settled(world, request.call, "delivered")

    assert (row["tries"], row["recent"][0]["what"]) == (3, "answered 503")
    assert request.call in [each["call"] for each in listed]
    assert len(first) == 3
    told = receiver.of(request.call)
    assert len(told) == 4
    assert {each.headers["webhook-id"] for each in told} == {f"{request.call}-0"}
    assert len({each.body for each in told}) == 1
    for each in told:
        Webhook(await secret(world)).verify(each.body.decode(), each.headers)
    assert [row["call"] for row in again.json()["deliveries"]] == [request.call]
    assert request.call not in [each["call"] for each in await deliveries(world, state="dead")]
    twice = await world.http.post(Route.WEBHOOKS_REDRIVE, json={"call": request.call})
    assert (twice.status_code, error_of(twice)["code"]) == (409, "conflict")


async def test_a_receiver_that_says_gone_and_one_that_redirects(world: World, receiver: Receiver) -> None:
    def status(request: Request) -> str:
        return "410 Gone" if request.path == "/gone" else f"302 Found\r\nLocation: {receiver.url('/elsewhere')}"

    receiver.status = status
    app = await world.publish(name="gone")
    gone = await a_call(world, app, webhook=receiver.url("/gone"))
    moved = await a_call(world, app, webhook=receiver.url("/moved"))

    await end(world, gone)
    await end(world, moved)
    await settled(world, gone.call, "dead")
    row = await settled(world, moved.call, "dead")

    assert len(receiver.of(gone.call)) == 1, "no second try"
    assert {each.path for each in receiver.of(moved.call)} == {"/moved"}
    assert "redirects are not followed" in row["recent"][0]["what"]


async def test_a_receiver_that_hangs_delays_no_other(world: World, receiver: Receiver) -> None:
    receiver.hang = asyncio.Event()
    app = await world.publish(name="hanging")
    async with a_receiver() as quick:
        hanging = [await a_call(world, app, webhook=receiver.url("/hang")) for _ in range(20)]
        for request in hanging:
            await end(world, request)
        await eventually(lambda: len(receiver.requests) >= 8)
        request = await a_call(world, app, webhook=quick.url())
        await end(world, request)
        await eventually(lambda: quick.of(request.call))
    receiver.hang.set()
    for request in hanging:
        await settled(world, request.call, "delivered")
    assert all(len(receiver.of(request.call)) == 1 for request in hanging)


@dataclass
class Given:
    """A delivery as the queue gives it."""

    data: bytes
    waits: list[float]
    subject: str = "x"
    stream_seq: int = 1

    def nak(self, delay_s: float) -> None:
        self.waits.append(delay_s)


async def test_many_receivers_of_one_workspace_that_hang_leave_room_for_the_others() -> None:
    asked: list[str] = []
    waits: list[float] = []

    async def hang(url: str, *_: object) -> Answer:
        asked.append(url)
        await asyncio.Event().wait()
        raise AssertionError

    async def keys(_: str) -> SigningKeys:
        return SigningKeys(new_key())

    signing, clock = SimpleNamespace(keys=keys), SystemClock()
    delivering = Delivering(None, signing, hang, (1.0,), clock, lambda *_: None)  # type: ignore[arg-type, return-value]
    loop = asyncio.get_running_loop()

    def give(workspace: str, number: int) -> asyncio.Task[None]:
        url = f"http://host{number}.{workspace}.example/"
        record = WebhookDelivery(f"fc-{number}", 0, workspace, url, "call.succeeded", "a", "f", 1.0, "pending", b"{}")
        return loop.create_task(delivering.on_delivery(Given(record.encode(), waits)))  # type: ignore[arg-type]

    tasks = [give("many", number) for number in range(SHARE + 10)]
    await eventually(lambda: len(asked) == SHARE and len(waits) == 10)
    tasks.append(give("other", 0))
    await eventually(lambda: "http://host0.other.example/" in asked)

    assert all(wait > 0 for wait in waits)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_result_that_comes_twice_makes_one_delivery(world: World, receiver: Receiver) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="twice")
    request = await a_call(world, app)
    await end(world, request)
    await settled(world, request.call, "delivered")
    stream = subjects.results_stream("local", shard_of(request.call))
    only = subjects.results_of("local", "main", request.call)
    await world.bus.ensure_consumer(stream, ConsumerSpec(name="again", filter_subject=only, prioritized=False))
    came: asyncio.Queue[Delivery] = asyncio.Queue()

    async with await world.bus.pull(stream, "again", came.put_nowait, group=None) as puller:
        puller.want(1)
        delivery = await came.get()
        clock = SystemClock()
        intake = Intake(world.bus, Results(world.bus, clock), Directory(world.bus), clock, lambda *_: None)  # type: ignore[arg-type, return-value]
        await intake.on_results([delivery])

    assert delivery.answered
    entries = await world.bus.kv(WEBHOOKS).entries(deliveries_of("main", request.call))
    assert [WebhookDelivery.decode(entry.value).state for entry in entries] == ["delivered"]
    assert len(receiver.of(request.call)) == 1


async def test_keys_are_rotated_with_both_signatures_and_lie_sealed(world: World, receiver: Receiver) -> None:
    app = await world.publish(a_function(webhook=receiver.url()), name="rotated")
    before = await secret(world)
    after = (await world.http.post(Route.WEBHOOK_SECRET_ROTATE)).json()
    request = await a_call(world, app)
    await end(world, request)
    await settled(world, request.call, "delivered")

    [told] = receiver.of(request.call)
    assert after["secret"] != before
    assert after["previous_until"] > 0
    Webhook(before).verify(told.body.decode(), told.headers)
    stored = [entry.value for entry in await world.bus.kv("secrets").entries()]
    assert stored
    assert all(key[6:].encode() not in value for key in (before, after["secret"]) for value in stored)
    assert (await world.http.get(Route.SECRETS)).json()["objects"] == []


async def test_private_addresses_are_refused_unless_the_operator_allows_them(world: World, receiver: Receiver) -> None:
    _, strict = await world.start_gateway(secrets_key=KEY)
    body = {"name": "private", "mode": "detached"}
    for host in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.7"):
        function = to_wire(a_function(webhook=f"http://{host}:{receiver.port}/"))
        refused = await strict.post(Route.APPS, json=body | {"functions": [function]})
        assert (refused.status_code, error_of(refused)["code"]) == (400, "invalid"), host
        assert "SQUALL_GATEWAY_WEBHOOK_ALLOWED" in error_of(refused)["message"]
    app = await world.publish(name="private")
    made = call_headers(app, kind="spawn", webhook="http://10.0.0.7/")
    answer = await strict.post("/v1/calls", headers=made, content=b"x")
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")
    assert receiver.connections == 0


async def test_addresses_are_judged_where_the_connection_is_opened_however_they_are_written(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{receiver.port}")
    post = Post(TargetRules())

    for host in ("localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "[::ffff:7f00:1]", "0"):
        answer = await post(f"http://{host}:{receiver.port}/", {}, b"{}")
        assert (answer.status, "address" in answer.reason) == (0, True), (host, answer)
        assert "127.0.0.1" not in answer.reason, "what a name means inside is not told"
    answer = await post("http://203.0.113.1/", {}, b"{}")
    assert (answer.status, "not a public" in answer.reason) == (0, True)
    assert receiver.connections == 0


async def test_a_name_one_of_whose_addresses_is_private_is_refused_as_a_whole(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443)) for each in ("1.1.1.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)

    answer = await Post(TargetRules())("https://rebound.example/", {}, b"{}")

    assert (answer.status, "not a public address" in answer.reason) == (0, True)


async def test_answers_are_not_read_beyond_their_status_and_shown_to_nobody() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent.append(1 << 16)
        except ConnectionError:
            ended.set()
        finally:
            writer.close()

    async def banner(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR canary of another service\r\n")
        writer.close()

    sent: list[int] = []
    ended = asyncio.Event()
    post = Post(TargetRules(networks(["127.0.0.1"])))
    for answers, expected in ((endless, Answer(200, "answered 200")), (banner, None)):
        async with await asyncio.start_server(answers, "127.0.0.1", 0) as server:
            answer = await post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", {}, b"{}")
            assert answer == expected or (answer.status == 0 and "canary" not in answer.reason), answer
            if answers is endless:
                await ended.wait()
    assert sum(sent) < 64 << 20


async def test_a_web_function_has_no_calls_to_tell_of_and_without_a_key_nothing_is_accepted(world: World) -> None:
    web = a_function(webhook="https://example.com/", methods=(MethodSpec(web=WebSpec("fastapi")),))
    body = {"name": "web", "mode": "detached", "functions": [to_wire(web)]}
    answer = await world.http.post(Route.APPS, json=body)
    assert "answers web requests" in error_of(answer)["message"]

    _, keyless = await world.start_gateway()
    function = to_wire(a_function(webhook="https://example.com/"))
    app = await world.publish(name="keyless")
    for refused in (
        await keyless.post(Route.APPS, json=body | {"functions": [function]}),
        await keyless.post(
            "/v1/calls", headers=call_headers(app, kind="spawn", webhook="https://example.com/"), content=b"x"
        ),
    ):
        assert (refused.status_code, error_of(refused)["code"]) == (503, "secrets_key")


async def test_another_workspace_sees_and_redrives_nothing(world: World, receiver: Receiver) -> None:
    receiver.status = lambda _: "410 Gone"
    app = await world.publish(a_function(webhook=receiver.url()), name="mine")
    request = await a_call(world, app)
    await end(world, request)
    await settled(world, request.call, "dead")
    token = await create_token(world.bus, "others", "workspace", "b", now=1.0)
    other = await world.client(str(world.http.base_url), token)

    seen = await other.get(Route.WEBHOOKS_OF_CALL.format(call=request.call))
    random = await other.get(Route.WEBHOOKS_OF_CALL.format(call=new_call_id(SHARDS)))
    redriven = await other.post(Route.WEBHOOKS_REDRIVE, json={"call": request.call})

    assert seen.status_code == random.status_code == 404
    assert (await other.get(Route.WEBHOOKS)).json() == {"deliveries": []}
    assert redriven.status_code == 409
    assert (await other.get(Route.WEBHOOK_SECRET)).json()["secret"] != await secret(world)
    entry = await world.bus.kv(WEBHOOKS).get(delivery_key("main", request.call, 0))
    assert entry is not None
    assert WebhookDelivery.decode(entry.value).state == "dead"


async def test_a_workspace_without_webhooks_has_no_consumer(world: World) -> None:
    token = await create_token(world.bus, "quiet", "workspace", "q", now=1.0)
    quiet = await world.client(str(world.http.base_url), token)
    body = {"name": "quiet", "mode": "detached", "functions": [to_wire(a_function())]}
    app = (await quiet.post(Route.APPS, json=body)).json()
    answer = await quiet.post("/v1/calls", headers=call_headers(app, kind="spawn"), content=b"x")

    assert answer.status_code == 202
    stream = subjects.results_stream("local", 0)
    assert await world.bus.consumer_info(stream, results_consumer("quiet")) is None
    assert await world.bus.consumer_info(stream, results_consumer("main")) is not None
