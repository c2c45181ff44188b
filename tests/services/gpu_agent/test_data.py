"""What travels besides results: large payloads, items of generators, lines of output, traces, usage, API calls."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from tests.services.gpu_agent.fake_backend import FakeBackend, FakeContainer, output
from tests.services.gpu_agent.scene import APP, WORKSPACE, Scene
from tests.services.gpu_agent.test_attempts import Held, echo
from tests.support.eventually import eventually

from squall.http_api.protocol import blob_ref
from squall.spec import MethodSpec, ScalingPolicy
from squall_bus import Message
from squall_contracts import subjects
from squall_contracts.blobs import blob_path, workspace_place
from squall_contracts.calls import CallRequested, ItemsTaken, ItemYielded
from squall_contracts.logs import LogLines
from squall_contracts.spans import SpanBatch, expand
from squall_contracts.usage import UsageIntervals
from squall_gpu_agent.backend import End, InputRequest, Log

GENERATOR: dict[str, Any] = {"methods": (MethodSpec("", is_generator=True),)}


# ---------------------------------------------------------------- large payloads


async def test_large_arguments_arrive_as_a_file_that_is_deleted_afterwards(scene: Scene) -> None:
    seen: list[Path] = []

    async def size(container: FakeContainer, request: InputRequest) -> End:
        assert request.path is not None
        seen.append(request.path)
        return output(str(request.path.stat().st_size).encode())

    async with scene.agent(FakeBackend({"f": size})):
        pool, function = await scene.ready()
        content = b"x" * 300_000
        request = await scene.call(pool, function, blob=blob_ref(scene.blob(content), len(content)))
        assert (await scene.result(request)).payload == b"300000"
        assert not seen[0].exists()


async def test_large_arguments_are_fetched_and_checked_out_of_reach_of_user_code(scene: Scene) -> None:
    async def seen(container: FakeContainer, request: InputRequest) -> End:
        assert request.path is not None
        return output(f"{request.path.parent == container.scratch} {container.incoming.is_dir()}".encode())

    async with scene.agent(FakeBackend({"f": seen})):
        pool, function = await scene.ready()
        content = b"x" * 300_000
        request = await scene.call(pool, function, blob=blob_ref(scene.blob(content), len(content)))
        assert (await scene.result(request)).payload == b"True True"


async def test_arguments_that_are_not_what_their_name_says_never_reach_user_code(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        digest = scene.blob(b"x" * 1000)
        (scene.blobs / digest[:2] / digest).write_bytes(b"y" * 1000)
        request = await scene.call(pool, function, blob=blob_ref(digest, 1000))
        result = await scene.reply(request)
        assert result.outcome == "failed"
        await scene.emptied(pool)
        assert result.error is not None
        assert "damaged" in result.error["message"]


async def test_a_large_result_is_in_the_blob_store_before_its_record_names_it(scene: Scene) -> None:
    content = b"z" * 300_000

    async def large(container: FakeContainer, request: InputRequest) -> End:
        path = container.scratch / "result"
        path.write_bytes(content)
        return output(path=path)

    async with scene.agent(FakeBackend({"f": large})):
        pool, function = await scene.ready()
        result = await scene.result(await scene.call(pool, function))
        digest = hashlib.sha256(content).hexdigest()
        assert (result.payload, result.blob) == (b"", blob_ref(digest, len(content)))
        assert (scene.blobs / workspace_place(WORKSPACE) / blob_path(digest)).read_bytes() == content


# ---------------------------------------------------------------- generators


class Reader:
    """The caller's side of a generator."""

    def __init__(self, scene: Scene, request: CallRequested) -> None:
        self.scene, self.request = scene, request
        self.items: list[ItemYielded] = []

    async def listen(self) -> None:
        await self.scene.bus.subscribe(subjects.items(self.scene.region, self.request.call), self._on_item)

    def _on_item(self, message: Message) -> None:
        self.items.append(ItemYielded.decode(message.data))

    def take(self, taken: int, attempt: str | None = None) -> None:
        credit = ItemsTaken(call=self.request.call, attempt=attempt or self.items[0].attempt, taken=taken)
        self.scene.bus.send(subjects.credit(self.scene.region, self.request.call), credit.encode())


async def test_items_reach_the_reader_in_order_before_the_result(scene: Scene) -> None:
    large = b"x" * 100_000

    async def generate(container: FakeContainer, request: InputRequest) -> End:
        for seq, payload in enumerate((b"first", large, b"last")):
            container.yield_item(request, seq, payload)
        return output(items=3)

    async with scene.agent(FakeBackend({"f": generate})):
        pool, function = await scene.ready(**GENERATOR)
        request = scene.request(pool, function, kind="generator")
        reader = Reader(scene, request)
        await reader.listen()
        await scene.accept(request)
        result = await scene.reply(request)
        assert (result.outcome, result.items) == ("succeeded", 3)
        digest = hashlib.sha256(large).hexdigest()
        assert [(item.seq, item.payload, item.blob) for item in reader.items] == [
            (0, b"first", None),
            (1, b"", blob_ref(digest, len(large))),
            (2, b"last", None),
        ]
        assert {item.attempt for item in reader.items} == {result.attempt}


async def test_the_generator_gets_as_much_credit_as_the_reader_took_even_when_told_twice(scene: Scene) -> None:
    go = asyncio.Event()

    async def generate(container: FakeContainer, request: InputRequest) -> End:
        container.yield_item(request, 0, b"item")
        await go.wait()
        return output(items=1)

    backend = FakeBackend({"f": generate})
    async with scene.agent(backend):
        pool, function = await scene.ready(**GENERATOR)
        request = scene.request(pool, function, kind="generator")
        reader = Reader(scene, request)
        await reader.listen()
        await scene.accept(request)
        await eventually(lambda: reader.items)
        reader.take(10, attempt="9-other")
        reader.take(3)
        reader.take(3)
        reader.take(5)
        await eventually(lambda: backend.containers[0].credits.get((request.call, 0)) == 5)
        go.set()
        await scene.result(request)


async def test_a_spawned_generator_does_not_wait_for_a_reader(scene: Scene) -> None:
    async def generate(container: FakeContainer, request: InputRequest) -> End:
        container.yield_item(request, 0, b"item")
        return output(items=1)

    backend = FakeBackend({"f": generate})
    async with scene.agent(backend):
        pool, function = await scene.ready(**GENERATOR)
        request = await scene.call(pool, function, kind="spawn", reply_to=None)
        assert (await scene.result(request)).outcome == "succeeded"
        assert backend.containers[0].credits == {(request.call, 0): 1}


# ---------------------------------------------------------------- output


async def test_lines_of_a_call_are_on_the_bus_before_its_result(scene: Scene) -> None:
    async def talk(container: FakeContainer, request: InputRequest) -> End:
        for text in ("loading\r", "done\n"):
            container.on_log(Log(container=container.id, stream="stdout", text=text, call=request.call, index=0))
        return output()

    async with scene.agent(FakeBackend({"f": talk})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await scene.reply(request)
        shard = subjects.shard_of_name(APP, scene.bus.topology.shards)
        subject = subjects.log(scene.region, shard, APP, pool, request.call)
        stored = await scene.bus.get_last(subjects.logs_stream(scene.region, shard), subject)
        assert stored is not None
        lines = LogLines.decode(stored.data)
        assert [line[1:] for line in lines.lines] == [["stdout", "loading\r"], ["stdout", "done\n"]]
        assert (lines.app, lines.function, lines.index) == (APP, "f", 0)


async def test_a_flood_of_output_is_cut_into_batches(scene: Scene) -> None:
    async def flood(container: FakeContainer, request: InputRequest) -> End:
        container.on_log(Log(container=container.id, stream="stdout", text="x" * 200_000, call=request.call, index=0))
        return output()

    async with scene.agent(FakeBackend({"f": flood})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await scene.reply(request)
        shard = subjects.shard_of_name(APP, scene.bus.topology.shards)
        subject = subjects.log(scene.region, shard, APP, pool, request.call)
        stream = subjects.logs_stream(scene.region, shard)
        batches = [LogLines.decode(stored.data) async for stored in scene.bus.read(stream, subject)]
        assert sum(len(str(line[2])) for batch in batches for line in batch.lines) == 200_000
        assert len(batches) >= 3


# ---------------------------------------------------------------- traces and usage


async def test_the_trace_of_a_cold_call_has_no_gap_between_the_claim_and_user_code(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        function = await scene.function()
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        await scene.propose(pool, function)
        await scene.result(request)
        batch = (await batches(scene, request))[0]
        spans = {span.name: span for span in expand(batch)}
        assert {"queue.wait", "container.start", "sandbox.create", "code.import", "user.code"} <= spans.keys()
        assert spans["agent.accept"].end_ns == spans["code.fetch"].start_ns
        assert spans["container.start"].end_ns <= spans["dispatch"].start_ns  # between them it waits in the queue
        assert spans["queue.wait"].end_ns == spans["dispatch"].end_ns == spans["attempt"].start_ns
        assert spans["attempt"].end_ns == spans["result.publish"].start_ns
        assert spans["user.code"].parent_id == spans["attempt"].span_id
        assert spans["attempt"].attributes["cold"] is True
        assert {span.trace_id for span in spans.values()} == {"a" * 32}


async def test_the_attempts_of_a_map_are_told_together_and_each_has_its_own_spans(scene: Scene) -> None:
    code = Held()
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(scaling=ScalingPolicy(max_inputs=30))
        first = await scene.call(pool, function)
        others = [await scene.call(pool, function, call=first.call, index=index) for index in range(1, 30)]
        await eventually(lambda: len(code.running) == 30)
        code.go.set()
        for request in (first, *others):
            await scene.result(request)
    await scene.bus.flush()
    told = await batches(scene, first)
    spans = [span for batch in told for span in expand(batch)]
    assert len({span.span_id for span in spans}) == len(spans)
    for index in range(30):
        mine = {span.name: span for span in spans if span.attributes["index"] == index}
        assert mine["user.code"].parent_id == mine["attempt"].span_id
        assert mine["attempt"].parent_id == "b" * 16
    assert len(told) < 30


async def test_only_the_first_call_of_a_container_is_cold(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await scene.result(request)
        names = [row[0] for row in (await batches(scene, request))[0].rows]
        assert names == ["queue.wait", "dispatch", "attempt", "user.code", "result.publish"]


async def test_a_call_of_a_trace_that_is_not_recorded_leaves_no_spans(scene: Scene) -> None:
    given: list[str | None] = []

    async def keep(container: FakeContainer, request: InputRequest) -> End:
        given.append(request.traceparent)
        return output()

    async with scene.agent(FakeBackend({"f": keep})):
        pool, function = await scene.ready()
        silent = await scene.call(pool, function, traceparent=f"00-{'a' * 32}-{'b' * 16}-00")
        await scene.result(silent)
        request = await scene.call(pool, function)
        await scene.result(request)
        await batches(scene, request)  # by then those of the first one would be there
        stream = subjects.spans_stream(scene.region)
        assert {SpanBatch.decode(stored.data).call async for stored in scene.bus.read(stream)} == {request.call}
        assert [(header or "")[-3:] for header in given] == ["-00", "-01"]


async def test_each_attempt_has_one_usage_interval(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        calls = [await scene.call(pool, function) for _ in range(3)]
        for request in calls:
            await scene.result(request)
    await scene.bus.flush()
    subject = subjects.usage(scene.region, function.function_id)
    told = [UsageIntervals.decode(s.data) async for s in scene.bus.read(subjects.usage_stream(scene.region), subject)]
    rows = [row for message in told for row in message.intervals]
    assert sorted(row[0] for row in rows) == sorted(request.call for request in calls)
    assert all(row[5] >= row[4] and row[6] == "succeeded" for row in rows)


async def batches(scene: Scene, request: CallRequested) -> list[SpanBatch]:
    async def read() -> list[SpanBatch]:
        stream = subjects.spans_stream(scene.region)
        found = [SpanBatch.decode(stored.data) async for stored in scene.bus.read(stream)]
        return [batch for batch in found if batch.call == request.call]

    return await eventually(read)


# ---------------------------------------------------------------- calls of containers


async def test_the_socket_of_containers_passes_bytes_to_the_gateway_and_back(scene: Scene) -> None:
    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"answer to " + await reader.read(100))
        await writer.drain()
        writer.close()

    gateway = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    port = gateway.sockets[0].getsockname()[1]
    backend = FakeBackend({"f": Held()})
    async with gateway, scene.agent(backend, gateway_url=f"http://127.0.0.1:{port}"):
        await scene.ready()
        reader, writer = await asyncio.open_unix_connection(backend.containers[0].request.socket_path)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b"answer to GET / HTTP/1.1\r\n\r\n"
        writer.close()
