"""The life of a call at the agent, on a real bus with a backend whose timing tests control."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import replace

import msgpack
import pytest
from tests.services.gpu_agent.fake_backend import FakeBackend, FakeContainer, failed, output
from tests.services.gpu_agent.scene import FAST_RETRY, WORKSPACE, Scene, ShiftedClock
from tests.support.eventually import eventually

from squall import errors
from squall.spec import ScalingPolicy
from squall_contracts import subjects
from squall_contracts.calls import AttemptFailed, CallRequested, CallResult
from squall_contracts.envelope import Message
from squall_contracts.nodes import ClaimState
from squall_gpu_agent import poisoned
from squall_gpu_agent.backend import End, Exit, FailureKind, FullDisk, InputRequest
from squall_gpu_agent.held import Held as HeldCall
from squall_gpu_agent.history import History, Past
from squall_gpu_agent.results import cancelled


async def echo(container: FakeContainer, request: InputRequest) -> End:
    return output(b"echo " + (request.payload or b""))


class Script:
    """User code that ends as told, one end for each attempt; the last one again and again."""

    def __init__(self, *ends: End) -> None:
        self.ends = deque(ends)
        self.began: list[float] = []

    async def __call__(self, container: FakeContainer, request: InputRequest) -> End:
        self.began.append(time.monotonic())
        return self.ends.popleft() if len(self.ends) > 1 else self.ends[0]


class Held:
    """User code that runs until it is let go."""

    def __init__(self, end: End | None = None) -> None:
        self.end = end if end is not None else output(b"done")
        self.go = asyncio.Event()
        self.running: list[str] = []

    async def __call__(self, container: FakeContainer, request: InputRequest) -> End:
        self.running.append(request.call)
        await self.go.wait()
        return self.end


# ---------------------------------------------------------------- success


async def test_a_call_is_recorded_then_answered_then_removed_from_the_queue(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function, b"hello")
        result = await scene.result(request)
        assert (result.outcome, result.payload, result.node) == ("succeeded", b"echo hello", "node-a")
        assert (await scene.reply(request)).encode() == result.encode()
        await scene.emptied(pool)


async def test_inputs_of_a_container_with_two_slots_run_at_the_same_time(scene: Scene) -> None:
    code = Held()
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(scaling=ScalingPolicy(max_inputs=2))
        calls = [await scene.call(pool, function) for _ in range(3)]
        await eventually(lambda: len(code.running) == 2)
        code.go.set()
        for call in calls:
            assert (await scene.result(call)).outcome == "succeeded"


async def test_two_agents_share_the_calls_of_a_pool(scene: Scene) -> None:
    first, second = Held(), Held()
    async with (
        scene.agent(FakeBackend({"f": first}), "node-a"),
        scene.agent(FakeBackend({"f": second}), "node-b"),
    ):
        pool, function = await scene.ready()
        key = await scene.propose(pool, function, "node-b")
        await scene.claim_in(key, ClaimState.READY)
        calls = [await scene.call(pool, function) for _ in range(2)]
        await eventually(lambda: len(first.running) == len(second.running) == 1)
        first.go.set()
        second.go.set()
        assert {(await scene.result(call)).node for call in calls} == {"node-a", "node-b"}


# ---------------------------------------------------------------- history


async def test_a_redelivered_call_with_a_result_is_answered_and_not_run_again(scene: Scene) -> None:
    code = Script(output(b"second"))
    async with scene.agent(FakeBackend({"f": code})):
        function = await scene.function()
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        await scene.deliver_once(pool, request)
        recorded = await scene.record(a_result(request.call, b"first"))
        await scene.propose(pool, function)
        assert (await scene.reply(request)).encode() == recorded
        await scene.emptied(pool)
        assert not code.began
        await scene.told(request, "skipped")


@pytest.mark.parametrize("gateways_clock_is_ahead_s", [0, 20])
async def test_a_call_from_before_the_connection_is_looked_up_whatever_clocks_say(
    scene: Scene, gateways_clock_is_ahead_s: int
) -> None:
    code = Script(output(b"second"))
    function = await scene.function()
    pool = await scene.pool(function)
    # As after a crash of the server: the queue has again what it had given out, as if for the first time.
    request = await scene.call(pool, function, accepted_at=time.time() + gateways_clock_is_ahead_s)
    recorded = await scene.record(a_result(request.call, b"first"))
    async with scene.agent(FakeBackend({"f": code})):
        await scene.propose(pool, function)
        assert (await scene.reply(request)).encode() == recorded
        await scene.emptied(pool)
        assert not code.began


async def test_once_the_journals_ends_are_known_new_calls_are_not_looked_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    read = History.read

    async def noted(history: History, held: HeldCall) -> Past:
        looked_up.append(held.request.call)
        return await read(history, held)

    monkeypatch.setattr(History, "read", noted)
    async with scene.agent(FakeBackend({"f": Script(output(b"x"))})):
        pool, function = await scene.ready()
        for _ in range(20):
            last = await scene.call(pool, function)
            await scene.result(last)
            if last.call not in looked_up:
                break
        assert last.call not in looked_up


async def test_a_call_that_was_accepted_twice_runs_once(scene: Scene) -> None:
    code = Script(output(b"once"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await scene.accept(request)
        await scene.result(request)
        await scene.emptied(pool)
        assert len(code.began) == 1


async def test_a_call_past_its_deadline_ends_expired_and_never_starts(scene: Scene) -> None:
    code = Script(output())
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function, deadline=time.time() - 1)
        result = await scene.result(request)
        assert (result.outcome, result.attempt) == ("expired", "")
        assert result.error is not None
        assert result.error["kind"] == "expired"
        assert (await scene.reply(request)).outcome == "expired"
        await scene.emptied(pool)
        assert not code.began


async def test_a_result_that_another_agent_recorded_first_is_the_one_that_is_told(scene: Scene) -> None:
    code = Held(output(b"late"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        recorded = await scene.record(a_result(request.call, b"early"))
        code.go.set()
        assert (await scene.reply(request)).encode() == recorded
        await scene.told(request, "superseded")
        await scene.emptied(pool)


@pytest.mark.parametrize("kind", [FailureKind.USER, FailureKind.INFRA])
async def test_a_failure_is_not_counted_when_another_agent_has_recorded_a_result(
    scene: Scene, kind: FailureKind
) -> None:
    """A queue that has forgotten its leases in a crash gives an input out again, and confirms the first one's lease."""
    code = Held(failed("too late", kind))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(retry=FAST_RETRY)
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        recorded = await scene.record(a_result(request.call, b"early"))
        code.go.set()
        assert (await scene.reply(request)).encode() == recorded
        await scene.told(request, "superseded")
        await scene.emptied(pool)
        assert await scene.attempts(request) == []
        assert len(code.running) == 1


async def test_an_unreadable_call_ends_failed_and_does_not_stop_the_queue(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        broken = scene.request(pool, function)
        await scene.accept(broken, data=b"\xc1 not a message")
        request = await scene.call(pool, function)
        result = await scene.result(broken)
        assert result.outcome == "failed"
        assert result.error is not None
        assert result.error["kind"] == "invalid_input"
        assert (await scene.result(request)).outcome == "succeeded"
        await scene.emptied(pool)


def newer(message: Message) -> bytes:
    """As a service of a later release might write it."""
    return msgpack.packb({**msgpack.unpackb(message.encode()), "v": message.VERSION + 1, "meaning": "another one"})


async def test_a_call_of_a_newer_version_waits_for_an_agent_that_understands_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poisoned, "ASIDE_S", 0.2)
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        request = scene.request(pool, function)
        await scene.accept(request, data=newer(request))
        assert (await scene.result(await scene.call(pool, function))).outcome == "succeeded", "it stops nobody"
        await scene.queues(pool, 1)
        assert await scene.recorded(request) is None
        monkeypatch.setattr(CallRequested, "VERSION", CallRequested.VERSION + 1)  # the agent is upgraded
        assert (await scene.result(request)).outcome == "succeeded"
        await scene.emptied(pool)


async def test_a_call_of_a_newer_version_that_nobody_understood_in_its_time_says_so(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        request = scene.request(pool, function, deadline=time.time() - 1)
        await scene.accept(request, data=newer(request))
        result = await scene.result(request)
        assert result.error is not None
        assert (result.outcome, result.error["kind"]) == ("failed", "invalid_input")
        assert "call_requested version 2 is newer than 1" in result.error["message"]
        await scene.emptied(pool)


async def test_a_count_of_attempts_of_a_newer_version_leaves_the_call_to_agents_that_can_read_it(scene: Scene) -> None:
    code = Script(output())
    function = await scene.function()
    pool = await scene.pool(function)
    request = await scene.call(pool, function)  # before the agent connects: it reads what is known of it
    failed = AttemptFailed(request.call, 0, "1-other", "user", 1, 0, time.time(), 0.0)
    await scene.bus.publish(subjects.attempts(scene.region, WORKSPACE, request.call, 0), newer(failed))
    async with scene.agent(FakeBackend({"f": code})):
        await scene.propose(pool, function)
        await scene.told(request, "abandoned")
        await scene.queues(pool, 1)
        assert await scene.recorded(request) is None
        assert not code.began


# ---------------------------------------------------------------- failures and retries


async def test_an_exception_without_retries_is_the_result(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": Script(failed("boom"))})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        result = await scene.result(request)
        assert (result.outcome, result.payload) == ("failed", b"pickled")
        assert result.error is not None
        assert (result.error["kind"], result.error["type"], result.error["message"]) == ("user", "ValueError", "boom")
        await scene.emptied(pool)
        assert await scene.attempts(request) == []


async def test_a_failed_attempt_is_counted_and_repeated_after_its_delay(scene: Scene) -> None:
    code = Script(failed("one"), failed("two"), output(b"third time"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(retry=replace(FAST_RETRY, initial_delay_s=0.2))
        request = await scene.call(pool, function)
        result = await scene.result(request)
        assert (result.outcome, result.payload, result.attempt[:2]) == ("succeeded", b"third time", "3-")
        assert [later - earlier >= 0.19 for earlier, later in zip(code.began, code.began[1:], strict=False)] == [
            True,
            True,
        ]
        counted = await scene.attempts(request)
        assert [(a.kind, a.user_failures, a.infra_failures) for a in counted] == [("user", 1, 0), ("user", 2, 0)]
        await scene.emptied(pool)


async def test_the_delay_of_a_retry_begins_when_it_is_known_that_there_is_no_result(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = History.result

    async def slowly(history: History, request: CallRequested) -> bytes | None:
        await asyncio.sleep(0.3)
        return await read(history, request)

    monkeypatch.setattr(History, "result", slowly)
    async with scene.agent(FakeBackend({"f": Script(failed("one"), output())})):
        pool, function = await scene.ready(retry=replace(FAST_RETRY, initial_delay_s=0.5))
        request = await scene.call(pool, function)
        await scene.result(request)
        (counted,) = await scene.attempts(request)
        assert counted.retry_at - counted.failed_at == pytest.approx(0.5, abs=0.2)


async def test_a_retry_that_the_queue_delivers_too_early_waits_for_its_time(scene: Scene) -> None:
    code = Script(output(b"in time"))
    async with scene.agent(FakeBackend({"f": code})):
        function = await scene.function(retry=FAST_RETRY)
        pool = await scene.pool(function)
        request = await scene.call(pool, function)
        await scene.deliver_once(pool, request)
        due = time.time() + 0.6
        await scene.count(request, retry_at=due)
        await scene.propose(pool, function)
        result = await scene.result(request)
    assert result.outcome == "succeeded"
    assert result.started_at >= due - 0.05


async def test_the_last_failure_is_the_result_when_retries_are_used_up(scene: Scene) -> None:
    code = Script(failed("one"), failed("two"), failed("three"))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(retry=FAST_RETRY)
        request = await scene.call(pool, function)
        result = await scene.result(request)
        assert result.outcome == "failed"
        assert result.error is not None
        assert result.error["message"] == "three"
        assert len(await scene.attempts(request)) == 2


async def test_arguments_that_cannot_be_loaded_are_not_retried(scene: Scene) -> None:
    code = Script(failed("No module named x", FailureKind.DESERIALIZATION))
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready(retry=FAST_RETRY)
        result = await scene.result(await scene.call(pool, function))
        assert result.error is not None
        assert result.error["kind"] == "deserialization"
        assert len(code.began) == 1


async def test_a_crash_is_counted_apart_and_the_input_runs_again_at_once(scene: Scene) -> None:
    crashes = 1

    async def crashing(container: FakeContainer, request: InputRequest) -> End:
        nonlocal crashes
        if crashes:
            crashes -= 1
            container.end(Exit(code=None, signal=11, reason="killed by SIGSEGV"))
            await asyncio.Event().wait()
        return output(b"survived")

    async with scene.agent(FakeBackend({"f": crashing})):
        pool, function = await scene.ready(containers=2)
        request = await scene.call(pool, function)
        result = await scene.result(request)
        assert (result.outcome, result.payload) == ("succeeded", b"survived")
        counted = await scene.attempts(request)
        assert [(a.kind, a.user_failures, a.infra_failures) for a in counted] == [("infra", 0, 1)]
        assert "SIGSEGV" in counted[0].reason


async def test_an_input_that_kills_every_container_ends_after_eight_losses_with_its_history(scene: Scene) -> None:
    async def deadly(container: FakeContainer, request: InputRequest) -> End:
        container.end(Exit(code=None, signal=9, oom=True, reason="killed: out of memory (limit 96 MiB)"))
        await asyncio.Event().wait()
        return output()

    async with scene.agent(FakeBackend({"f": deadly})):
        pool, function = await scene.ready(containers=9)
        request = await scene.call(pool, function)
        result = await scene.result(request, within_s=20)
        assert result.outcome == "failed"
        assert result.error is not None
        assert result.error["kind"] == "out_of_memory"
        assert result.error["message"].count("out of memory (limit 96 MiB)") >= 8
        assert len(await scene.attempts(request)) == 7


async def test_a_call_that_finds_its_containers_disk_full_says_so_and_a_container_that_stays_full_is_replaced(
    scene: Scene,
) -> None:
    disk = FullDisk("/", 512 << 20, 0, still=True, limit_mib=512)

    async def greedy(container: FakeContainer, request: InputRequest) -> End:
        removed = request.payload == b"removed"
        return replace(failed("full", FailureKind.DISK_FULL), disk=disk._replace(still=not removed))

    async with scene.agent(FakeBackend({"f": greedy})):
        function = await scene.function("f")
        pool = await scene.pool(function)
        key = await scene.propose(pool, function)
        await scene.claim_in(key, ClaimState.READY)
        first = await scene.result(await scene.call(pool, function, payload=b"removed"))
        second = await scene.result(await scene.call(pool, function))
        for result in (first, second):
            assert (result.outcome, result.payload) == ("failed", b"")
            assert result.error is not None
            assert (result.error["kind"], result.error["traceback"]) == ("disk_full", "...")
            assert result.error["data"] == {"used_mib": 512, "limit_mib": 512, "place": "/"}
            error = errors.from_wire({**result.error, "code": result.error["kind"]})
            assert isinstance(error, errors.DiskFullError)
            assert isinstance(error, OSError), "callers who catch one still do"
            assert (error.errno, str(error), "it has 512" in error.hint) == (28, "full", True)
        await scene.gone(key)  # after the second: the first left room for it


# ---------------------------------------------------------------- time limits


async def test_code_over_its_time_is_stopped_and_the_call_ends_timed_out(scene: Scene) -> None:
    code = Held()
    backend = FakeBackend({"f": code})
    async with scene.agent(backend):
        pool, function = await scene.ready(timeout_s=0.1)
        request = await scene.call(pool, function)
        result = await scene.result(request)
        assert result.outcome == "timed_out"
        assert result.error is not None
        assert (result.error["kind"], result.error["data"]) == ("function_timeout", {"timeout_s": 0.1})
        code.go.set()
        other = await scene.call(pool, function)
        assert (await scene.result(other)).outcome == "succeeded"
        assert len(backend.containers) == 1


async def test_code_that_does_not_stop_is_killed_with_its_container(scene: Scene) -> None:
    backend = FakeBackend({"f": Held()})
    async with scene.agent(backend):
        pool, function = await scene.ready(timeout_s=0.1)
        backend.containers[0].ignores_cancel = True
        request = await scene.call(pool, function)
        assert (await scene.result(request)).outcome == "timed_out"
        exit = await backend.containers[0].wait()
        assert exit.signal == 9


async def test_a_time_out_uses_up_a_retry(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": Held()})):
        pool, function = await scene.ready(timeout_s=0.05, retry=replace(FAST_RETRY, max_retries=1))
        request = await scene.call(pool, function)
        assert (await scene.result(request)).outcome == "timed_out"
        assert [a.kind for a in await scene.attempts(request)] == ["user"]


# ---------------------------------------------------------------- cancels


async def test_a_cancel_stops_running_code_and_the_recorded_result_is_told(scene: Scene) -> None:
    code = Held()
    backend = FakeBackend({"f": code})
    async with scene.agent(backend):
        pool, function = await scene.ready(retry=FAST_RETRY)
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        await scene.record(cancelled(request, time.time()))
        scene.cancel(request)
        scene.cancel(request)
        assert (await scene.reply(request)).outcome == "cancelled"
        await scene.emptied(pool)
        assert await scene.attempts(request) == []
        assert not backend.containers[0].running


async def test_a_cancel_of_another_pools_call_with_the_same_id_stops_nothing_here(scene: Scene) -> None:
    code, other = Held(), Held()
    backend = FakeBackend({"f": code, "g": other})
    async with scene.agent(backend):
        request = await scene.call(*await scene.ready())
        pool, function = await scene.ready("g")
        second = await scene.call(pool, function)
        await eventually(lambda: code.running and other.running)
        scene.cancel(replace(request, pool=pool), terminate=True)
        await scene.record(cancelled(second, time.time()))
        scene.cancel(second)
        await scene.emptied(pool)  # by then the first one has been heard, too
        code.go.set()
        assert (await scene.result(request)).outcome == "succeeded"
        assert not await scene.attempts(request)


async def test_a_call_that_arrives_after_its_cancel_does_not_start(scene: Scene) -> None:
    code = Script(output())
    async with scene.agent(FakeBackend({"f": code})):
        pool, function = await scene.ready()
        request = scene.request(pool, function)
        await scene.record(cancelled(request, time.time()))
        scene.cancel(request)
        await scene.accept(request)
        await scene.emptied(pool)
        assert not code.began


async def test_terminating_containers_kills_the_one_that_ran_the_call(scene: Scene) -> None:
    code = Held()
    backend = FakeBackend({"f": code})
    async with scene.agent(backend):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        await scene.record(cancelled(request, time.time()))
        scene.cancel(request, terminate=True)
        assert (await backend.containers[0].wait()).reason == "terminated by a cancel"
        assert (await scene.result(request)).outcome == "cancelled"
        await scene.emptied(pool)


# ---------------------------------------------------------------- fencing


async def test_an_agent_that_was_paused_records_no_failure(scene: Scene) -> None:
    code, clock = Held(failed("stale")), ShiftedClock()
    async with scene.agent(FakeBackend({"f": code}), clock=clock):
        pool, function = await scene.ready(retry=FAST_RETRY)
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        clock.pause(9)
        code.go.set()
        await scene.told(request, "abandoned")
        assert await scene.recorded(request) is None
        assert await scene.attempts(request) == []
        assert await scene.queued(pool) == 1


async def test_an_agent_that_was_paused_still_records_success(scene: Scene) -> None:
    code, clock = Held(output(b"worth keeping")), ShiftedClock()
    async with scene.agent(FakeBackend({"f": code}), clock=clock):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        clock.pause(9)
        code.go.set()
        assert (await scene.result(request)).payload == b"worth keeping"
        await scene.emptied(pool)


async def test_a_machine_that_slept_records_no_failure(scene: Scene) -> None:
    code, clock = Held(failed("stale")), ShiftedClock()
    async with scene.agent(FakeBackend({"f": code}), clock=clock):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        clock.sleep_machine(60)
        await scene.told(request, "started")  # the leases have ticked since
        code.go.set()
        await scene.told(request, "abandoned")
        assert await scene.recorded(request) is None


def a_result(call: str, payload: bytes) -> CallResult:
    return CallResult(call=call, index=0, workspace=WORKSPACE, outcome="succeeded", attempt="1-other", payload=payload)


# ---------------------------------------------------------------- dead letters


async def test_a_spawned_call_that_failed_is_kept_as_a_dead_letter_with_its_input(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": Script(failed("no"))})):
        pool, function = await scene.ready()
        spawned = await scene.call(pool, function, b"input", kind="spawn", reply_to=None)
        remote = await scene.call(pool, function, b"input", kind="remote")
        result = await scene.result(spawned)
        await scene.result(remote)
        letters = await scene.letters()
        assert [(letter.call, letter.outcome, letter.failed_at) for letter in letters] == [
            (spawned.call, "failed", result.ended_at)
        ]
        assert CallRequested.decode(letters[0].request) == spawned


async def test_a_spawned_call_that_was_cancelled_or_succeeded_is_no_dead_letter(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        await scene.result(await scene.call(pool, function, b"input", kind="spawn", reply_to=None))
        assert await scene.letters() == []


async def test_a_stale_agent_leaves_no_dead_letter(scene: Scene) -> None:
    code, clock = Held(failed("stale")), ShiftedClock()
    async with scene.agent(FakeBackend({"f": code}), clock=clock):
        pool, function = await scene.ready()
        request = await scene.call(pool, function, kind="spawn", reply_to=None)
        await eventually(lambda: code.running)
        clock.pause(9)
        code.go.set()
        await scene.told(request, "abandoned")
        assert await scene.letters() == []
