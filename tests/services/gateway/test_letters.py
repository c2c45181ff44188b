"""Dead letters: what failed is listed, inspected, and run again as a call of its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.services.gateway.world import SHARDS, TinyAgent, World, a_function, call_headers, error_of, sha256, succeeded

from squall.errors import ServiceError
from squall.http_api.protocol import Header
from squall.ids import new_call_id, shard_of
from squall_contracts import subjects
from squall_contracts.calls import AttemptFailed, CallRequested, CallResult
from squall_contracts.functions import pool_id
from squall_contracts.letters import dead_letter
from squall_gateway.auth import create_token
from squall_gateway.blobs import Blobs

pytestmark = pytest.mark.asyncio(loop_scope="module")


def failed(request: CallRequested, at: float = 9.0, outcome: str = "failed") -> CallResult:
    error = {"kind": "user", "type": "ValueError", "message": "no", "traceback": "Traceback ..."}
    return replace(succeeded(request, b""), outcome=outcome, error=error, ended_at=at)


async def keep_letter(world: World, request: CallRequested, result: CallResult) -> None:
    """What an agent writes before it records a bad end."""
    letter = dead_letter(request, result)
    subject = subjects.letter("local", letter.workspace, letter.app, letter.call, letter.index, letter.failed_at)
    await world.bus.publish(subject, letter.encode(), ttl_s=3600)


async def accepted(world: World, call: str) -> CallRequested:
    stream = subjects.journal_stream("local", shard_of(call))
    [stored] = (await world.bus.get_many(stream, [subjects.call("local", "*", call, 0)])).values()
    return CallRequested.decode(stored.data)


async def a_dead_call(world: World, app: dict[str, Any], payload: bytes = b"x", at: float = 9.0, **more: str) -> str:
    """A spawned call that failed."""
    headers = call_headers(app, kind="spawn", **more)
    answer = await world.http.post("/v1/calls", headers=headers, content=payload)
    assert answer.status_code == 202, answer.text
    request = await accepted(world, headers[Header.CALL])
    await keep_letter(world, request, failed(request, at))
    await TinyAgent(world.bus, succeeded).finish(request, failed(request, at))
    await world.bus.purge(
        subjects.work_stream("local", shard_of(request.call)), subjects.calls_of("local", "*", request.call)
    )
    return request.call


async def letters(world: World, app: dict[str, Any], **query: Any) -> dict[str, Any]:
    return dict((await world.http.get("/v1/letters", params={"app": app["app_id"], **query})).json())


async def test_failed_calls_are_listed_the_last_ones_first_and_within_limits(world: World) -> None:
    app = await world.publish(name="listed")
    calls = [await a_dead_call(world, app, at=float(at)) for at in (30, 10, 20)]

    everything = await letters(world, app)
    recent = await letters(world, app, since=15, limit=1)

    assert [row["call"] for row in everything["letters"]] == [calls[0], calls[2], calls[1]]
    assert everything["letters"][0] == everything["letters"][0] | {
        "index": 0,
        "app": app["app_id"],
        "function": "double",
        "version": 1,
        "outcome": "failed",
        "error": "ValueError: no",
        "failed_at": 30.0,
        "redriven_to": "",
    }
    assert ([row["call"] for row in recent["letters"]], recent["total"]) == ([calls[0]], 2)


async def test_a_letter_whose_call_succeeded_in_the_end_does_not_count(world: World) -> None:
    """Its agent wrote the letter and died; another one ran the call well."""
    app = await world.publish(name="survivor")
    headers = call_headers(app, kind="spawn")
    await world.http.post("/v1/calls", headers=headers, content=b"x")
    request = await accepted(world, headers[Header.CALL])
    await keep_letter(world, request, failed(request))

    before = await letters(world, app)
    await TinyAgent(world.bus, succeeded).finish(request, succeeded(request))
    after = await letters(world, app)
    refused = await world.http.post(f"/v1/calls/{request.call}/redrive")

    assert (before["letters"], after["letters"]) == ([], [])
    assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")


async def test_a_redriven_call_is_a_new_one_with_the_same_input_and_both_know_of_each_other(
    world: World, agent: TinyAgent
) -> None:
    app = await world.publish(name="again")
    call = await a_dead_call(world, app, b"the input")
    stream, subject = subjects.results_stream("local", shard_of(call)), subjects.result("local", "main", call, 0)
    recorded = await world.bus.get_last(stream, subject)

    answer = (await world.http.post(f"/v1/calls/{call}/redrive")).json()
    [redriven] = answer["redriven"]
    await agent.serve(pool_id(app["functions"]["double"]))
    result = await world.http.get(f"/v1/calls/{redriven['into']}/result?wait=10")
    old = (await world.http.get(f"/v1/calls/{call}")).json()
    new = (await world.http.get(f"/v1/calls/{redriven['into']}")).json()

    assert result.status_code == 200
    assert [(seen.call, seen.payload, seen.kind) for seen in agent.seen] == [(redriven["into"], b"the input", "spawn")]
    assert (redriven["call"], answer["refused"]) == (call, [])
    assert (old["state"], old["redriven_to"]) == ("failed", [{"index": 0, "call": redriven["into"]}])
    assert (new["state"], new["redriven_from"]) == ("succeeded", f"{call}.0")
    assert await world.bus.get_last(stream, subject) == recorded
    assert (await letters(world, app))["letters"][0]["redriven_to"] == redriven["into"]


async def test_a_letter_is_redriven_once_however_often_and_wherever_that_is_asked(world: World) -> None:
    app = await world.publish(name="once")
    call = await a_dead_call(world, app)
    _, other = await world.start_gateway()

    answers = await asyncio.gather(*(each.post(f"/v1/calls/{call}/redrive") for each in [world.http, other] * 5))
    into = {answer.json()["redriven"][0]["into"] for answer in answers}

    assert len(into) == 1
    pool = pool_id(app["functions"]["double"])
    inputs = 0
    for shard in range(SHARDS):
        wanted = subjects.calls_of_pool("local", shard, pool)
        inputs += len((await world.bus.stream_info(subjects.journal_stream("local", shard), wanted)).subjects)
    assert inputs == 2  # the old call and the new one


async def test_a_redrive_that_was_cut_off_before_the_call_was_made_is_finished_by_the_next(world: World) -> None:
    from squall_contracts.letters import Redriven

    app = await world.publish(name="cut")
    call, into = await a_dead_call(world, app), new_call_id(SHARDS)
    link = Redriven(call, 0, "main", into, 10.0)
    await world.bus.publish(subjects.redrive("local", "main", call, 0), link.encode())

    page = (await world.http.post("/v1/letters/redrive", json={"app": app["app_id"]})).json()

    assert [each["into"] for each in page["redriven"]] == [into]
    assert (await accepted(world, into)).redriven_from == f"{call}.0"


async def test_all_letters_of_an_app_are_redriven_page_by_page_and_not_twice(world: World) -> None:
    app, other = await world.publish(name="many"), await world.publish(name="bystander")
    calls = [await a_dead_call(world, app, at=float(at)) for at in range(10, 15)]
    await a_dead_call(world, other)

    async def redrive_all(**more: Any) -> list[str]:
        body, found = {"app": app["app_id"], "limit": 2, "cursor": "", **more}, []
        while True:
            page = (await world.http.post("/v1/letters/redrive", json=body)).json()
            assert page["refused"] == []
            found += [each["call"] for each in page["redriven"]]
            if not page["cursor"]:
                return found
            body["cursor"] = page["cursor"]

    late = await redrive_all(since=12.5)
    rest = await redrive_all()

    assert (late, rest, await redrive_all()) == (calls[3:], calls[:3], [])
    assert [row["redriven_to"] for row in (await letters(world, other))["letters"]] == [""]


async def test_a_redrive_runs_the_present_version_of_the_function(world: World) -> None:
    first = await world.publish(name="fixed", mode="deployed")
    call = await a_dead_call(world, first)
    second = await world.publish(a_function(timeout_s=77), name="fixed", mode="deployed")

    [redriven] = (await world.http.post(f"/v1/calls/{call}/redrive")).json()["redriven"]

    assert (await accepted(world, redriven["into"])).function == second["functions"]["double"]
    assert first["functions"] != second["functions"]


async def test_what_cannot_be_redriven_says_why(world: World) -> None:
    app = await world.publish(name="refusals")
    gone = sha256(b"gone")
    await world.http.put(f"/v1/blobs/{gone}", content=b"gone")
    without_blob = await a_dead_call(world, app, b"", blob=f"{gone}:4")
    [path] = [each for each in (world.folder / "blobs").rglob(f"*{gone}*") if each.is_file()]
    path.unlink()
    _, fresh = await world.start_gateway()  # the other one remembers that it has seen the blob
    remote = call_headers(app)
    await world.http.post("/v1/calls", headers=remote, content=b"x")
    stopped = await world.publish(name="ended")
    of_stopped = await a_dead_call(world, stopped)
    await world.http.post(f"/v1/apps/{stopped['app_id']}/stop", json={"reason": "over"})

    codes = {}
    for call in (without_blob, remote[Header.CALL], of_stopped, new_call_id(SHARDS)):
        refused = await fresh.post(f"/v1/calls/{call}/redrive")
        codes[call] = (refused.status_code, error_of(refused)["code"])

    assert list(codes.values()) == [
        (410, "input_expired"),
        (409, "conflict"),
        (409, "conflict"),
        (404, "not_found"),
    ]
    page = (await fresh.post("/v1/letters/redrive", json={"app": app["app_id"]})).json()
    assert [(each["call"], each["error"]["code"]) for each in page["refused"]] == [(without_blob, "input_expired")]


async def test_a_store_that_is_away_is_no_input_that_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    app, content = await world.publish(name="outage"), b"still there"
    name = sha256(content)
    await world.http.put(f"/v1/blobs/{name}", content=content)
    call = await a_dead_call(world, app, b"", blob=f"{name}:{len(content)}")

    async def away(*_: object) -> int:
        raise ServiceError("the blob store does not answer")

    with monkeypatch.context() as outage:
        outage.setattr(Blobs, "size", away)
        refused = await world.http.post(f"/v1/calls/{call}/redrive")
    assert (refused.status_code, error_of(refused)["message"]) == (503, "the blob store does not answer")
    assert (await world.http.post(f"/v1/calls/{call}/redrive")).is_success


async def test_letters_of_another_workspace_are_not_there(world: World) -> None:
    app = await world.publish(name="private")
    call = await a_dead_call(world, app)
    token = await create_token(world.bus, "other", "workspace", "test", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)

    listed = (await stranger.get("/v1/letters")).json()
    redrive = await stranger.post(f"/v1/calls/{call}/redrive")
    page = (await stranger.post("/v1/letters/redrive", json={})).json()

    assert (listed, page["redriven"], redrive.status_code) == ({"letters": [], "total": 0}, [], 404)


async def test_a_dead_call_is_inspected_also_when_the_journal_has_forgotten_it(world: World) -> None:
    app = await world.publish(name="forgotten")
    call = await a_dead_call(world, app, b"12345")
    attempt = AttemptFailed(call, 0, "1-aaaaaa", "user", 1, 0, 4.0, 5.0, "raised ValueError: no", ["1-aaaaaa user"])
    await world.bus.publish(subjects.attempts("local", "main", call, 0), attempt.encode())
    before = (await world.http.get(f"/v1/calls/{call}")).json()
    journal = subjects.journal_stream("local", shard_of(call))
    assert await world.bus.purge(journal, subjects.calls_of("local", "*", call)) == 1

    after = (await world.http.get(f"/v1/calls/{call}")).json()

    for body in (before, after):
        assert body["input"] == {"encoding": "pickle", "method": "", "bytes": 5, "blob": None}
        assert (body["function"], body["version"], body["dead_letters"]) == ("double", 1, [0])
        assert body["last_error"]["traceback"] == "Traceback ..."
        assert [each["reason"] for each in body["attempts"]] == ["raised ValueError: no"]
    assert (await world.http.post(f"/v1/calls/{call}/redrive")).json()["redriven"][0]["call"] == call
