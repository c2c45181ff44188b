"""Containers at the agent: claims taken, refused, failed, drained and cleaned up; and what they are given."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.services.gpu_agent.fake_backend import NOW_NS, FakeBackend, FakeContainer
from tests.services.gpu_agent.scene import APP, Scene
from tests.services.gpu_agent.test_attempts import Held, echo
from tests.support.eventually import eventually

from squall.http_api.protocol import encode_parameters
from squall.spec import GpuRequest, MethodSpec, Resources, ScalingPolicy
from squall_bus import Message
from squall_contracts import subjects
from squall_contracts.functions import TOKENS, TokenRecord
from squall_contracts.logs import LogLines
from squall_contracts.nodes import (
    CONTAINERS,
    NODES,
    ClaimState,
    Command,
    ContainerStats,
    NodeCommand,
    NodeFact,
    claim_key,
)
from squall_gpu_agent import logs
from squall_gpu_agent.backend import ContainerRequest, Exit, Log, OnLog, Phase, StartFailed, StartFailureKind
from squall_gpu_agent.logs import NO_CALL
from squall_gpu_agent.policy.retry import MOST_KILLED_STARTS

GPU = "sim-node-a-h100-1"
IMPORT_FAILED = StartFailed(
    StartFailureKind.USER_CODE,
    "No module named x",
    type_name="builtins.ModuleNotFoundError",
    traceback="...",
    pickled=b"pickled",
    phases=[Phase("code.import", NOW_NS, 1000)],
)


async def test_a_node_tells_what_it_has_and_leaves_no_entry_when_it_stops(scene: Scene) -> None:
    backend = FakeBackend({})
    backend.no_gpus = "it gives none"
    async with scene.agent(backend, simulated_gpus="H100:2"):
        entry = await scene.bus.kv(NODES).get("node-a")
        assert entry is not None
        fact = NodeFact.decode(entry.value)
        assert (fact.cpu, fact.memory_mib, len(fact.gpus), fact.draining) == (8, 8192, 2, False)
        assert fact.no_gpus == "it gives none"
    assert await scene.bus.kv(NODES).get("node-a") is None


async def test_a_node_without_devices_is_a_cpu_node_and_its_containers_see_none(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend, gpus="none"):
        entry = await scene.bus.kv(NODES).get("node-a")
        assert entry is not None
        fact = NodeFact.decode(entry.value)
        assert (fact.gpus, fact.gpu_note) == ((), "it offers none")
        await scene.ready()
        assert backend.containers[0].request.gpu_env == {
            "CUDA_VISIBLE_DEVICES": "",
            "NVIDIA_VISIBLE_DEVICES": "void",
        }


async def test_claims_of_an_earlier_life_are_deleted_at_the_start(scene: Scene) -> None:
    function = await scene.function()
    pool = await scene.pool(function)
    ours = [await scene.propose(pool, function, state=state) for state in (ClaimState.READY, ClaimState.STARTING)]
    theirs = await scene.propose(pool, function, "node-b", state=ClaimState.READY)
    async with scene.agent(FakeBackend({})):
        for key in ours:
            await scene.gone(key)
        assert await scene.claim(theirs) is not None


async def test_a_claim_becomes_ready_with_the_phases_of_its_start(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        function = await scene.function()
        pool = await scene.pool(function)
        claim = await scene.claim_in(await scene.propose(pool, function), ClaimState.READY)
        assert claim.how == "fresh: it is a fake"
        names = [row[0] for row in claim.spans]
        assert names == ["container.start", "agent.accept", "code.fetch", "sandbox.create", "code.import"]


async def test_what_does_not_fit_is_refused_with_the_reason(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo}), cpu=1):
        function = await scene.function()
        pool = await scene.pool(function)
        await scene.claim_in(await scene.propose(pool, function, cpu=0.75), ClaimState.READY)
        refused = await scene.claim_in(await scene.propose(pool, function, cpu=0.75), ClaimState.REFUSED)
        assert refused.reason == "needs 0.75 cores, 0.25 free"


async def test_more_isolation_than_the_node_offers_is_refused(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        function = await scene.function(isolation="sandbox")
        pool = await scene.pool(function)
        refused = await scene.claim_in(await scene.propose(pool, function), ClaimState.REFUSED)
        assert refused.reason == "needs isolation 'sandbox', the node offers 'process'"


async def test_a_container_sees_the_devices_of_its_claim(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend, simulated_gpus="H100:2"):
        function = await scene.function(resources=Resources(gpus=(GpuRequest("H100"),)))
        pool = await scene.pool(function)
        await scene.claim_in(await scene.propose(pool, function, gpus=(GPU,)), ClaimState.READY)
        assert backend.containers[0].request.gpu_env["CUDA_VISIBLE_DEVICES"] == GPU
        assert await eventually(lambda: logged(scene, pool)) == [["system", f"its GPUs are simulated: {GPU}\n"]]
        taken = await scene.claim_in(await scene.propose(pool, function, gpus=(GPU,)), ClaimState.REFUSED)
        assert taken.reason == f"GPU {GPU} is taken"


async def logged(scene: Scene, pool: str) -> list[list[object]]:
    """What the pool's containers wrote outside calls."""
    shard = subjects.shard_of_name(APP, scene.bus.topology.shards)
    subject = subjects.log(scene.region, shard, APP, pool, NO_CALL)
    stored = await scene.bus.get_last(subjects.logs_stream(scene.region, shard), subject)
    return [line[1:] for line in LogLines.decode(stored.data).lines] if stored is not None else []


async def test_a_container_gets_code_parameters_and_a_token_of_its_app(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function(is_class=True, methods=(MethodSpec("predict"),), env={"A": "1"})
        pool = await scene.pool(function, encode_parameters({"size": "small", "key": b"\x00"}))
        await scene.claim_in(await scene.propose(pool, function), ClaimState.READY)
        request = backend.containers[0].request
        assert (request.code_dir / "root" / "app.py").read_bytes() == b"# user code\n"
        assert request.params == {"size": "small", "key": {"base64": "AA=="}}
        assert request.env["A"] == "1"
        assert request.env["SQUALL_SERVER_URL"] == f"unix:{request.socket_path}"
        tokens = [TokenRecord.decode(entry.value) for entry in await scene.bus.kv(TOKENS).entries()]
        assert [(t.scope, t.app_id) for t in tokens] == [("container", APP)]
        assert request.token
    assert await scene.bus.kv(TOKENS).entries() == []


# ---------------------------------------------------------------- starts that fail


async def test_a_failing_import_of_a_deployed_app_fails_the_claim_and_leaves_its_calls_waiting(scene: Scene) -> None:
    backend = FakeBackend({})
    backend.start_failure = IMPORT_FAILED
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        claim = await scene.claim_in(await scene.propose(pool, function), ClaimState.FAILED)
        assert (claim.user_error, claim.error["kind"], claim.error["phase"]) == (True, "user", "import")
        assert claim.reason == "import of app failed: ModuleNotFoundError: No module named x"
        await scene.queues(pool, 1)
        assert await scene.recorded(request) is None


@pytest.mark.parametrize(
    ("began", "step"),
    [
        (["code.import"], "import of app"),
        (["enter"], "@enter of f"),
        (["enter.snap"], "@enter of f"),
        (["enter", "web.open"], "the start of the web server of f"),
    ],
)
async def test_the_reason_of_a_failed_start_names_the_step_that_failed(
    scene: Scene, began: list[str], step: str
) -> None:
    backend = FakeBackend({})
    backend.start_failure = StartFailed(
        StartFailureKind.USER_CODE,
        "no FastAPI",
        type_name="squall.exception.LoadError",
        phases=[Phase(name, NOW_NS, 1000) for name in began],
    )
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        await scene.call(pool, function)
        claim = await scene.claim_in(await scene.propose(pool, function), ClaimState.FAILED)
        assert claim.reason == f"{step} failed: LoadError: no FastAPI"


async def test_a_failing_import_of_an_ephemeral_app_ends_its_waiting_calls(scene: Scene) -> None:
    backend = FakeBackend({})
    backend.start_failure = IMPORT_FAILED
    async with scene.agent(backend):
        function = await scene.function(ephemeral=True)
        pool = await scene.pool(function)
        calls = [await scene.call(pool, function) for _ in range(5)]
        await scene.propose(pool, function)
        for request in calls:
            result = await scene.result(request)
            assert (result.outcome, result.payload) == ("failed", b"pickled")
            assert result.error is not None
            assert (result.error["kind"], result.error["type"]) == ("user", "ModuleNotFoundError")
            assert (await scene.reply(request)).encode() == result.encode()
        await scene.emptied(pool)


async def test_a_missing_code_bundle_fails_the_claim_but_not_the_calls(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        function = await scene.function(ephemeral=True)
        for blob in scene.blobs.glob("*/*"):
            blob.unlink()
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        claim = await scene.claim_in(await scene.propose(pool, function), ClaimState.FAILED)
        assert "does not exist" in claim.reason
        assert not claim.user_error
        assert await scene.recorded(request) is None


async def test_calls_fail_when_their_containers_are_killed_each_time_that_they_start(scene: Scene) -> None:
    backend = FakeBackend({})
    backend.start_failure = StartFailed(StartFailureKind.KILLED, "killed by SIGKILL")
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        key = await scene.propose(pool, function, killed_before=MOST_KILLED_STARTS - 2)
        claim = await scene.claim_in(key, ClaimState.FAILED)
        assert (claim.killed, claim.user_error) == (True, False)
        await scene.queues(pool, 1)
        assert await scene.recorded(request) is None
        backend.start_failure = StartFailed(StartFailureKind.INFRA, "the disk is full")
        key = await scene.propose(pool, function, killed_before=MOST_KILLED_STARTS)
        assert not (await scene.claim_in(key, ClaimState.FAILED)).killed
        await scene.queues(pool, 1)
        assert await scene.recorded(request) is None, "that will pass"
        backend.start_failure = StartFailed(StartFailureKind.KILLED, "killed by SIGKILL")
        await scene.propose(pool, function, killed_before=MOST_KILLED_STARTS - 1)
        result = await scene.result(request)
        assert result.outcome == "failed"
        assert result.error is not None
        assert result.error["kind"] == "infra"
        assert "the last 8 containers were killed while they started: killed by SIGKILL" in result.error["message"]
        assert "memory=" in result.error["fix"]
        await scene.emptied(pool)


async def test_a_start_without_its_image_says_whether_the_image_is_lost(scene: Scene) -> None:
    backend = FakeBackend({})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        for kind, lost in ((StartFailureKind.IMAGE, False), (StartFailureKind.IMAGE_LOST, True)):
            backend.start_failure = StartFailed(kind, "image im-1 is not here")
            claim = await scene.claim_in(await scene.propose(pool, function), ClaimState.FAILED)
            assert (claim.image_lost, claim.user_error, claim.reason) == (lost, False, "image im-1 is not here")


async def test_a_container_that_dies_before_its_first_input_counts_as_a_failed_start(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        await scene.claim_in(key, ClaimState.READY)
        backend.containers[0].end(Exit(code=3, signal=None, reason="exited with code 3"))
        claim = await scene.claim_in(key, ClaimState.FAILED)
        assert claim.reason == "the container exited with code 3 before its first input"


async def test_a_container_that_dies_later_only_loses_its_claim(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        await scene.result(await scene.call(pool, function))
        backend.containers[0].end(Exit(code=3, signal=None, reason="exited with code 3"))
        await scene.gone(key)


async def test_the_last_lines_of_a_container_are_stored_when_its_claim_goes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FLUSH_S", 3600.0)  # nothing but its end brings them out
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        await scene.result(await scene.call(pool, function))
        container = backend.containers[0]
        container.on_log(Log(container=container.id, stream="stdout", text="good bye\n"))
        container.end(Exit(code=0, signal=None, reason="exited"))
        await scene.gone(key)

        stream = subjects.logs_stream(scene.region, subjects.shard_of_name(APP, scene.bus.topology.shards))
        stored = [LogLines.decode(each.data) async for each in scene.bus.read(stream)]
        assert [(each.container, each.lines[0][1:]) for each in stored] == [(container.id, ["stdout", "good bye\n"])]


# ---------------------------------------------------------------- draining


async def test_a_drained_node_stays_drained_when_its_agent_restarts_until_it_is_resumed(scene: Scene) -> None:
    async def told(command: str) -> None:
        answered: list[Message] = []
        listening = await scene.bus.subscribe(inbox := scene.bus.new_inbox(), answered.append)
        scene.bus.send(subjects.command(scene.region, "node-a"), NodeCommand(command, inbox).encode())
        await eventually(lambda: answered)
        await listening.close()

    async def draining() -> bool:
        entry = await scene.bus.kv(NODES).get("node-a")
        assert entry is not None
        return NodeFact.decode(entry.value).draining

    async with scene.agent(FakeBackend({})):
        await told(Command.DRAIN)
    async with scene.agent(FakeBackend({})):
        assert await draining()
        await told(Command.RESUME)
        assert not await draining()
    async with scene.agent(FakeBackend({})):
        assert not await draining()


async def test_a_drained_container_finishes_its_input_and_takes_no_more(scene: Scene) -> None:
    code = Held()
    async with scene.agent(FakeBackend({"f": code})):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        await scene.drain(key)
        later = await scene.call(pool, function)
        code.go.set()
        assert (await scene.result(request)).outcome == "succeeded"
        await scene.gone(key)
        await scene.queues(pool, 1)
        assert await scene.recorded(later) is None


async def test_a_claim_that_is_deleted_takes_its_container_with_it(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        await scene.claim_in(key, ClaimState.READY)
        await scene.bus.kv(CONTAINERS).delete(key)
        assert (await backend.containers[0].wait()).reason == "stopped"


async def test_a_drain_while_the_container_starts_gives_the_start_up(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    backend.may_start.clear()
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        await scene.claim_in(key, ClaimState.STARTING)
        await scene.drain(key)
        await scene.gone(key)
        assert not backend.containers


async def test_a_claim_that_is_drained_while_its_start_fails_does_not_stay(scene: Scene) -> None:
    class FailsWhileDrained(FakeBackend):
        async def start(self, request: ContainerRequest, on_log: OnLog) -> FakeContainer:
            await scene.drain(key)  # it may overtake what the agent hears of it
            raise IMPORT_FAILED

    async with scene.agent(FailsWhileDrained({"f": echo})):
        function = await scene.function()
        pool = await scene.pool(function)
        for _ in range(10):
            key = f"{pool}.{scene.ordinal}"
            assert await scene.propose(pool, function) == key
            await scene.over(key)


async def test_the_place_of_an_ended_container_can_be_taken_by_a_new_one(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        for _ in range(2):
            scene.ordinal = 0
            key = await scene.propose(pool, function)
            await scene.claim_in(key, ClaimState.READY)
            await scene.drain(key)
            await scene.gone(key)
        assert len(backend.containers) == 2


async def test_a_stopping_agent_hands_prefetched_calls_to_others_at_once(scene: Scene) -> None:
    first, second = Held(), Held()
    first.go.set()
    second.go.set()
    async with scene.agent(FakeBackend({"f": second}), "node-b"):
        async with scene.agent(FakeBackend({"f": first}), "node-a", drain_s=0.05) as running:
            pool, function = await scene.ready()
            for _ in range(10):  # measured, so that calls are leased ahead
                await scene.result(await scene.call(pool, function))
            first.go.clear()
            calls = [await scene.call(pool, function) for _ in range(6)]
            await eventually(lambda: len(first.running) == 11)
            key = await scene.propose(pool, function, "node-b")
            await scene.claim_in(key, ClaimState.READY)
            await running.stop()
        for request in calls:
            result = await scene.result(request, within_s=4)  # sooner than any lease runs out
            assert (result.outcome, result.node) == ("succeeded", "node-b")
    interrupted = await scene.attempts(calls[0])
    assert [(a.kind, a.infra_failures) for a in interrupted] == [("infra", 1)]


async def test_stats_tell_the_load_soon_after_it_changed(scene: Scene) -> None:
    code = Held()
    told: list[ContainerStats] = []

    def on_stats(message: Message) -> None:
        told.append(ContainerStats.decode(message.data))

    await scene.bus.subscribe(subjects.stats(scene.region, "node-a"), on_stats)
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(scaling=ScalingPolicy(max_inputs=3))
        request = await scene.call(pool, function)
        await eventually(lambda: told and told[-1].containers and told[-1].containers[0][2:4] == [1, 3], within_s=0.9)
        code.go.set()
        await scene.result(request)
        await eventually(lambda: told[-1].containers[0][2] == 0 and told[-1].finished == {pool: 1}, within_s=0.9)


async def test_a_stale_echo_of_a_claim_starts_nothing(scene: Scene) -> None:
    backend = FakeBackend({"f": echo})
    async with scene.agent(backend):
        function = await scene.function()
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        claim = await scene.claim_in(key, ClaimState.READY)
        await scene.drain(key)
        await scene.gone(key)
        await scene.bus.kv(CONTAINERS).put(claim_key(pool, claim.ordinal), replace(claim, state="proposed").encode())
        fresh = await scene.claim_in(await scene.propose(pool, function), ClaimState.READY)
        assert fresh.container != claim.container
        await asyncio.sleep(0)
        assert len(backend.containers) == 2
