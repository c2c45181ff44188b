"""When the bus, another agent or this agent's lease is lost in the middle of a call."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.services.gpu_agent.fake_backend import FakeBackend, failed, output
from tests.services.gpu_agent.scene import FAST_RETRY, WORKSPACE, Scene
from tests.services.gpu_agent.test_attempts import Held, Script, a_result
from tests.support.eventually import eventually
from tests.support.nats_server import NatsServer

from squall.http_api.protocol import blob_ref
from squall.spec import ScalingPolicy
from squall_contracts import subjects
from squall_contracts.calls import CallEvent, CallRequested
from squall_service.blobs import Blobs

pytestmark = pytest.mark.slow


async def started_elsewhere(scene: Scene, request: CallRequested, attempt: str) -> None:
    """What an agent that died left in the history."""
    event = CallEvent(
        call=request.call, index=0, event="started", at=time.time(), attempt=attempt, node="node-lost", container="ta-1"
    )
    scene.bus.publish_soon(subjects.event(scene.region, WORKSPACE, request.call, 0), event.encode())
    await scene.bus.flush()


async def test_an_attempt_that_was_lost_with_its_agent_is_counted_by_the_next_one(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": Script(output(b"second try"))})):
        function = await scene.function()
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        await scene.deliver_once(pool, request)
        await started_elsewhere(scene, request, "1-dead")
        await scene.propose(pool, function)
        result = await scene.result(request)
        assert (result.outcome, result.attempt[:2]) == ("succeeded", "2-")
        counted = await scene.attempts(request)
        assert [(a.attempt, a.kind, a.infra_failures) for a in counted] == [("1-dead", "infra", 1)]
        assert "node-lost" in counted[0].reason


async def test_a_call_that_was_started_before_its_deadline_does_not_expire_because_its_agent_was_lost(
    scene: Scene,
) -> None:
    async with scene.agent(FakeBackend({"f": Script(output())})):
        function = await scene.function()
        pool = await scene.pool(function)
        request = await scene.call(pool, function, deadline=time.time() - 1)
        await scene.deliver_once(pool, request)
        await started_elsewhere(scene, request, "1-dead")
        await scene.propose(pool, function)
        assert (await scene.result(request)).outcome == "succeeded"


async def test_the_same_lost_attempt_is_counted_once(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": Script(failed("one"), output(b"done"))})):
        function = await scene.function(retry=FAST_RETRY)
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        await scene.deliver_once(pool, request)
        await started_elsewhere(scene, request, "1-dead")
        await scene.propose(pool, function)
        assert (await scene.result(request)).outcome == "succeeded"
        counted = await scene.attempts(request)
        assert [(a.kind, a.user_failures, a.infra_failures) for a in counted] == [("infra", 0, 1), ("user", 1, 1)]


@pytest.mark.slow
async def test_a_redelivered_call_whose_earlier_attempt_still_runs_here_waits_for_it(
    scene: Scene, server: NatsServer
) -> None:
    code = Held(output(b"after all"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(scaling=ScalingPolicy(max_inputs=2))
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        server.pause()
        try:
            until = time.monotonic() + 9
            await eventually(lambda: time.monotonic() > until, within_s=12)
        finally:
            server.resume()
        other = await scene.call(pool, function)  # delivered behind the one that comes again
        await eventually(lambda: other.call in code.running)
        code.go.set()
        assert (await scene.result(request)).payload == b"after all"
        await scene.emptied(pool)
        assert code.running.count(request.call) == 1


async def test_a_call_that_runs_while_the_bus_restarts_is_recorded_afterwards(scene: Scene, server: NatsServer) -> None:
    code = Held(output(b"survived"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        await server.kill()
        code.go.set()
        await server.start()
        assert (await scene.result(request)).payload == b"survived"
        await eventually(lambda: scene.bus.connected)
        await scene.emptied(pool)
        assert len(code.running) == 1


async def test_calls_accepted_before_a_reconnect_are_looked_up_before_they_start(
    scene: Scene, server: NatsServer
) -> None:
    code = Held(output(b"late"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        first = await scene.call(pool, function)
        await eventually(lambda: code.running)
        waiting = await scene.call(pool, function)
        await server.restart()
        await eventually(lambda: scene.bus.connected)
        await scene.record(a_result(waiting.call, b"early"))
        code.go.set()
        await scene.result(first)
        await scene.emptied(pool)
        assert code.running == [first.call]


async def test_a_call_that_waits_for_its_arguments_while_the_bus_restarts_is_looked_up_once_more(
    scene: Scene, server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, asked, go = Held(output(b"again")), asyncio.Event(), asyncio.Event()
    content = b"arguments"

    async def slowly(blobs: Blobs, ref: str, path: Path) -> None:
        asked.set()
        await go.wait()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("squall_gpu_agent.execution.LONG_S", 0.0)
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        monkeypatch.setattr(Blobs, "fetch", slowly)
        request = await scene.call(pool, function, blob=blob_ref(scene.blob(content), len(content)))
        await asked.wait()
        await server.restart()
        await eventually(lambda: scene.bus.connected)
        await scene.record(a_result(request.call, b"early"))
        go.set()
        await scene.emptied(pool)
        assert (await scene.result(request)).payload == b"early"
        assert code.running == []


@pytest.mark.slow
async def test_a_call_that_runs_longer_than_its_lease_is_not_given_to_anybody_else(scene: Scene) -> None:
    first, second = Held(output(b"first")), Held()
    async with scene.agent(FakeBackend({"f": first})), scene.agent(FakeBackend({"f": second}), "node-b"):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: first.running)
        await scene.propose(pool, function, "node-b")
        until = time.monotonic() + 9.5
        await eventually(lambda: time.monotonic() > until, within_s=12)
        assert not second.running
        first.go.set()
        assert (await scene.result(request)).payload == b"first"


@pytest.mark.slow
async def test_an_agent_whose_lease_could_not_be_renewed_for_eight_seconds_records_no_failure(
    scene: Scene, server: NatsServer
) -> None:
    code = Held(failed("stale"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        server.pause()
        try:
            until = time.monotonic() + 9
            await eventually(lambda: time.monotonic() > until, within_s=12)
        finally:
            server.resume()
        code.go.set()
        # The queue gave it to somebody else meanwhile: here to the same agent, which counts the lost attempt.
        assert (await scene.result(request)).attempt.startswith("2-")
        assert [(a.kind, a.user_failures) for a in await scene.attempts(request)] == [("infra", 0)]
