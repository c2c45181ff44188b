"""Traces: rows become spans and phases; SDKs add theirs; a collector gets all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.services.gateway.world import TinyAgent, World, a_function, a_world, call_headers, error_of
from tests.support.eventually import eventually
from tests.support.otlp_sink import OtlpSink, ReceivedSpan

from squall.http_api.protocol import Header
from squall.ids import new_call_id
from squall.spec import to_wire
from squall_contracts import spans, subjects
from squall_contracts.functions import pool_id
from squall_contracts.spans import SpanBatch, row
from squall_gateway.auth import create_token

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

TRACE = "c" * 32
ROOT = "d" * 16
MS = 1_000_000


def traced(app: dict[str, Any], trace: str = TRACE, root: str = ROOT, **more: str) -> dict[str, str]:
    return call_headers(app, traceparent=spans.traceparent(trace, root), **more)


async def publish(
    world: World, call: str, *rows: list[Any], attempt: str = "", trace: str = TRACE, root: str = ROOT
) -> None:
    batch = SpanBatch(trace, root, call, 0, attempt, list(rows))
    await world.bus.publish(subjects.spans("local", trace), batch.encode())


async def trace_of(world: World, call: str, *names: str) -> dict[str, Any]:
    """The trace, once it has spans of these names."""

    async def complete() -> dict[str, Any]:
        answer = await world.http.get(f"/v1/calls/{call}/trace")
        found = dict(answer.json())
        return found if set(names) <= {span["name"] for span in found.get("spans", ())} else {}

    return await eventually(complete)


async def test_the_trace_of_a_call_has_the_gateways_phases_below_the_callers_span(
    world: World, agent: TinyAgent
) -> None:
    app, trace = await world.publish(), "1" * 32
    headers = traced(app, trace)
    await agent.serve(pool_id(app["functions"]["double"]))

    await world.http.post("/v1/calls?wait=10", headers=headers, content=b"x")
    request = agent.seen[0]
    await publish(world, request.call, *request.spans, attempt="1-aaaaaa", trace=trace)
    found = await trace_of(world, request.call, "gateway.accept", "journal.publish", "result.return")

    by_name = {span["name"]: span for span in found["spans"]}
    assert found["trace_id"] == trace
    assert by_name["gateway.accept"]["parent_id"] == ROOT
    assert by_name["journal.publish"]["parent_id"] == by_name["gateway.accept"]["span_id"]
    assert by_name["journal.publish"]["end_ns"] == by_name["gateway.accept"]["end_ns"]
    assert len({span["span_id"] for span in found["spans"]}) == len(found["spans"])


async def test_phases_do_not_overlap_and_the_rest_is_named_other(world: World) -> None:
    app, trace = await world.publish(), "2" * 32
    headers = traced(app, trace, kind="remote")
    call = headers[Header.CALL]
    await world.http.post("/v1/calls?wait=0.01", headers=headers, content=b"x")
    now = 10**18
    await publish(
        world,
        call,
        row("call", "", "sdk", now, now + 100 * MS, span_id=ROOT),
        row("args.encode", "", "sdk", now, now + 10 * MS),
        row("queue.wait", "", "agent", now + 10 * MS, now + 60 * MS),
        row("autoscaler.decide", "", "autoscaler", now + 20 * MS, now + 30 * MS),
        row("user.code", "attempt", "runner", now + 60 * MS, now + 90 * MS),
        row("attempt", "", "agent", now + 55 * MS, now + 92 * MS, cold=True),
        trace=trace,
    )
    found = await trace_of(world, call, "call", "user.code")

    assert [(phase["name"], phase["duration_ns"] // MS) for phase in found["phases"]] == [
        ("args.encode", 10),
        ("queue.wait", 10),
        ("autoscaler.decide", 10),
        ("queue.wait", 25),
        ("attempt", 5),
        ("user.code", 30),
        ("attempt", 2),
        ("other", 8),
    ]
    assert found["wall_ns"] == 100 * MS


async def test_other_inputs_of_a_map_are_left_out_and_calls_made_inside_are_not(world: World) -> None:
    app, trace = await world.publish(), "3" * 32
    headers = traced(app, trace)
    call, made = headers[Header.CALL], traced(app, trace)
    inner = made[Header.CALL]
    for each in (headers, made):
        await world.http.post("/v1/calls?wait=0.01", headers=each, content=b"x")
    attempt = spans.span_id(call, 0, "1-a", "attempt")
    await publish(world, call, row("attempt", "", "agent", 1, 2), attempt="1-a", trace=trace)
    other = SpanBatch(trace, ROOT, call, 1, "1-a", [row("attempt", "", "agent", 1, 2)])
    await world.bus.publish(subjects.spans("local", trace), other.encode())
    inside = SpanBatch(trace, attempt, inner, 0, "1-b", [row("attempt", "", "agent", 1, 2)])
    await world.bus.publish(subjects.spans("local", trace), inside.encode())

    found = await trace_of(world, call, "attempt", "journal.publish")

    attempts = [s["attributes"] for s in found["spans"] if s["name"] == "attempt"]
    assert sorted((a["call"] == inner, a["index"]) for a in attempts) == [(False, 0), (True, 0)]


async def test_who_makes_a_call_within_anothers_trace_sees_nothing_of_the_others(world: World) -> None:
    app, trace = await world.publish(), "e7" * 16
    headers = traced(app, trace)
    call, web = headers[Header.CALL], new_call_id(2)
    await world.http.post("/v1/calls?wait=0.01", headers=headers, content=b"x")
    await publish(world, call, row("attempt", "", "agent", 1, 2), row("canary", "attempt", "runner", 1, 2), trace=trace)
    function = app["functions"]["double"]
    await publish(world, web, row("web.request", "", "gateway", 1, 2, function_id=function), trace=trace)
    await publish(world, f"im-{'0' * 24}", row("image.build", "", "builder", 1, 2), trace=trace)
    token = await create_token(world.bus, "elsewhere", "workspace", "x", now=1.0)
    stranger = await world.client(str(world.http.base_url), token)
    body = {"name": "nosy", "mode": "detached", "functions": [to_wire(a_function())]}
    theirs = (await stranger.post("/v1/apps", json=body)).json()

    for own in (new_call_id(2), web):  # also under an id that is another's
        nosy = traced(theirs, trace, call=own)
        await stranger.post("/v1/calls?wait=0.01", headers=nosy, content=b"x")
        found = await stranger.get(f"/v1/calls/{own}/trace")
        assert found.status_code == 200, found.text
        names = {span["name"] for span in found.json()["spans"]}
        assert not names & {"attempt", "canary", "web.request", "image.build"}, names
    assert (await world.http.get(f"/v1/calls/{call}/trace")).status_code == 200


async def test_an_sdk_posts_its_own_rows(world: World) -> None:
    app, trace = await world.publish(), "4" * 32
    headers = traced(app, trace)
    call = headers[Header.CALL]
    await world.http.post("/v1/calls?wait=0.01", headers=headers, content=b"x")
    batch = {
        "trace_id": trace,
        "parent_id": ROOT,
        "call": call,
        "index": 0,
        "attempt": "",
        "rows": [["call", "", "sdk", 5, 10, {"span_id": ROOT, "parent_span_id": "e" * 16, "error": "ValueError: no"}]],
    }

    answer = await world.http.post("/v1/spans", json={"batches": [batch]})
    found = await trace_of(world, call, "call")

    assert answer.status_code == 202
    [span] = [span for span in found["spans"] if span["name"] == "call"]
    assert (span["span_id"], span["parent_id"], span["error"]) == (ROOT, "e" * 16, "ValueError: no")


async def test_the_gateways_rows_and_the_sdks_are_stored_as_one_record_or_by_themselves_after_a_while(
    world: World,
) -> None:
    app, joined, alone, strange = await world.publish(), "5" * 32, "6" * 32, "7" * 32
    headers = traced(app, joined)
    batch = {"trace_id": joined, "parent_id": ROOT, "call": headers[Header.CALL], "index": 0, "attempt": ""}
    rows = [["call", "", "sdk", 5, 10, {"span_id": ROOT}]]
    await world.http.post("/v1/calls?wait=0.01", headers=headers, content=b"x")
    await world.http.post("/v1/calls?wait=0.01", headers=traced(app, alone), content=b"x")

    # Somebody else's trace with the same call id gets nothing of it.
    for each in (batch | {"trace_id": strange, "rows": rows}, batch | {"rows": rows}):
        await world.http.post("/v1/spans", json={"batches": [each]})

    assert [len(batch.rows) for batch in await stored_batches(world, strange)] == [1]
    [record] = await stored_batches(world, joined)
    assert {row[0] for row in record.rows} == {"call", "gateway.accept", "journal.publish"}
    [record] = await stored_batches(world, alone)
    assert {row[0] for row in record.rows} == {"gateway.accept", "journal.publish"}


async def stored_batches(world: World, trace: str) -> list[SpanBatch]:
    """What SPANS has of a trace, once it has anything."""

    async def read() -> list[SpanBatch]:
        found = world.bus.read(subjects.spans_stream("local"), subjects.spans("local", trace))
        return [SpanBatch.decode(stored.data) async for stored in found]

    return await eventually(read)


@pytest.mark.parametrize(
    "change", [{"trace_id": "../x"}, {"rows": [["a"]]}, {"rows": [[1, 2, 3, 4, 5, 6]]}, {"call": 5}]
)
async def test_rows_that_nobody_could_read_back_are_refused(world: World, change: dict[str, Any]) -> None:
    batch = {"trace_id": TRACE, "parent_id": ROOT, "call": "fc-1", "index": 0, "attempt": "", "rows": []} | change

    answer = await world.http.post("/v1/spans", json={"batches": [batch]})

    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid")


async def test_a_call_of_a_trace_that_is_not_recorded_leaves_no_spans_and_says_so(
    world: World, agent: TinyAgent
) -> None:
    app, trace = await world.publish(), "9" * 32
    headers = call_headers(app, traceparent=spans.traceparent(trace, ROOT, sampled=False))
    await agent.serve(pool_id(app["functions"]["double"]))

    answered = await world.http.post("/v1/calls?wait=10", headers=headers, content=b"x")
    answer = await world.http.get(f"/v1/calls/{headers[Header.CALL]}/trace")

    assert answered.status_code == 200
    assert (agent.seen[0].spans, agent.seen[0].traceparent[-3:]) == ([], "-00")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    assert "SQUALL_GATEWAY_TRACE_RATIO" in error_of(answer)["fix"]


async def test_the_ratio_decides_about_calls_that_come_without_a_trace(tmp_path: Path) -> None:
    async with a_world(tmp_path, trace_ratio=0.0) as world:
        app = await world.publish()
        alone, within = call_headers(app), traced(app)
        for headers in (alone, within):
            await world.http.post("/v1/calls", headers=headers, content=b"x")

        assert (await world.http.get("/v1/info")).json()["trace_ratio"] == 0.0
        assert (await world.http.get(f"/v1/calls/{alone[Header.CALL]}/trace")).status_code == 404
        await trace_of(world, within[Header.CALL], "journal.publish")
        [gateway] = world.gateways
        await gateway.stop()
        info = await world.bus.stream_info(subjects.spans_stream("local"), subjects.spans("local", ">"))
        assert set(info.subjects) == {subjects.spans("local", TRACE)}


async def test_the_trace_of_an_unknown_call_is_not_found(world: World) -> None:
    answer = await world.http.get(f"/v1/calls/{new_call_id(2)}/trace")

    assert answer.status_code == 404


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_spans_reach_a_collector_with_their_ids_and_services(tmp_path: Path, protocol: str) -> None:
    with OtlpSink() as sink:
        endpoint = sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint
        async with a_world(tmp_path, otlp_endpoint=endpoint, otlp_protocol=protocol) as world:
            await publish(
                world,
                "fc-1",
                row("call", "", "sdk", 5_000, 9_000, span_id=ROOT),
                row("attempt", "", "agent", 6_000, 8_000, cold=True, error="boom", links=["f" * 16]),
                row("user.code", "attempt", "runner", 6_500, 7_000),
                attempt="1-a",
            )
            await eventually(lambda: len(sink.spans(TRACE)) == 3)
            found: dict[str, ReceivedSpan] = {span.name: span for span in sink.spans(TRACE)}

    assert found["call"].span_id == ROOT
    assert (found["attempt"].parent_id, found["attempt"].failed) == (ROOT, True)
    assert found["attempt"].links == ((TRACE, "f" * 16),)
    assert found["attempt"].attributes["squall.cold"] is True
    assert found["user.code"].parent_id == found["attempt"].span_id
    assert (found["user.code"].start_ns, found["user.code"].end_ns) == (6_500, 7_000)
    assert {span.service for span in found.values()} == {"squall-sdk", "squall-agent", "squall-runner"}


async def test_spans_that_the_collector_did_not_take_are_exported_when_it_is_back(tmp_path: Path) -> None:
    with OtlpSink() as first:
        endpoint = first.http_endpoint
    async with a_world(tmp_path, otlp_endpoint=endpoint, otlp_protocol="http") as world:
        await publish(world, "fc-1", row("call", "", "sdk", 5_000, 9_000))
        stream = subjects.spans_stream("local")

        async def pending() -> bool:
            info = await world.bus.consumer_info(stream, "otlp")
            return info is not None and info.ack_floor_seq == 0 and (info.pending or info.ack_pending) > 0

        await eventually(pending)
