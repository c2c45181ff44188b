"""A service kills itself at one step of a call after the other: each acknowledged call has one result, and its code ran
as often as the step says, also after the queue has brought everything back that was not acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
from tests.chaos import invariants
from tests.chaos.conftest import PROGRAMS
from tests.chaos.victims import RESULTS_S, Effects, agent_of, function
from tests.support.eventually import eventually as async_eventually
from tests.support.failpoints import FailPoints, armed_platform
from tests.support.platform import Part, Platform, eventually

import squall
from squall.ids import shard_of
from squall_bus import Record, connect
from squall_contracts import subjects, topology
from squall_contracts.calls import DEADLINE_HEADER, CallRequested

Form = str
"""How a call is made: remote, spawn, map or items."""


@dataclass
class Scene:
    """One platform for all steps. What must be true of a call's executions is checked at its end, and at the end of
    all: what was not acknowledged to the queue has come back by then."""

    platform: Platform
    points: FailPoints
    threads: ThreadPoolExecutor
    expected: list[tuple[Effects, int, range]] = field(default_factory=list)
    value: int = 0

    def agents(self) -> list[Part]:
        """Both, running: one may have been killed by the step before."""
        return eventually(
            lambda: parts if len(parts := self.platform.parts_named("gpu-agent")) == 2 else None, what="an agent"
        )

    def call(self, form: Form, name: str, effects: Effects) -> tuple[int, Future[Any]]:
        """Begin a call; its value and what it will give."""
        self.value += 1
        value = self.value
        return value, self.threads.submit(make, form, name, effects, value)

    def expect(self, effects: Effects, value: int, executions: range) -> None:
        """So often the code of a call may have run to its end."""
        self.expected.append((effects, value, executions))
        self._check(effects, value, executions)

    def check_all(self) -> None:
        """Nothing ran again since."""
        for effects, value, executions in self.expected:
            self._check(effects, value, executions)

    def _check(self, effects: Effects, value: int, executions: range) -> None:
        count = effects.counts("finished")[value]
        assert count in executions, f"executed {count} times instead of {executions}: {effects.lines()}"


def make(form: Form, name: str, effects: Effects, value: int) -> Any:
    """One call of that form, to its result."""
    called, arguments = function(name), (*effects.arguments, value)
    match form:
        case "remote":
            return called.remote(*arguments)
        case "spawn":
            return called.spawn(*arguments).get(timeout=RESULTS_S)
        case "map":
            (answer,) = called.starmap([arguments])
            return answer
        case _:
            raise ValueError(form)


@pytest.fixture
def scene(shared_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The SDK of this process talks to it."""
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, shared_scene.platform.client_environment()[name])
    return shared_scene


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    platform, points = armed_platform(tmp_path_factory.mktemp("points"))
    with platform, ThreadPoolExecutor(4) as threads:
        platform.squall("deploy", PROGRAMS / "work.py")
        scene = Scene(platform, points, threads)
        yield scene
        invariants.check(platform)
        scene.check_all()


# ---------------------------------------------------------------------- gateway


@pytest.mark.parametrize(
    ("step", "form"),
    [
        ("gateway.admitted", "remote"),
        ("gateway.stored", "spawn"),
        ("gateway.stored", "map"),
        ("gateway.accepted", "remote"),
        ("gateway.accepted", "spawn"),
    ],
)
def test_gateway_dies_while_it_accepts(scene: Scene, effects: Effects, step: str, form: Form) -> None:
    effects.open_gate()
    with scene.points.fatal(f"{step}=kill", scene.platform.front):
        value, result = scene.call(form, "work", effects)

    assert result.result(RESULTS_S) == value * value
    scene.expect(effects, value, range(1, 2))


@pytest.mark.parametrize("step", ["gateway.cancel_recorded", "gateway.cancel_told"])
def test_gateway_dies_while_it_cancels(scene: Scene, effects: Effects, step: str) -> None:
    call = function("work").spawn(*effects.arguments, 1)
    effects.wait_for_starts(1)
    with scene.points.fatal(f"{step}=kill", scene.platform.front):
        call.cancel()

    with pytest.raises(squall.errors.CallCancelledError):
        call.get(timeout=RESULTS_S)
    effects.open_gate()
    scene.expect(effects, 1, range(1))


# ---------------------------------------------------------------------- agent


BEFORE_THE_CODE = ["agent.delivered", "agent.history_read", "agent.handed_over"]


@pytest.mark.parametrize("step", BEFORE_THE_CODE)
def test_agent_dies_before_the_code_has_ended(scene: Scene, effects: Effects, step: str) -> None:
    warm(effects)
    with scene.points.fatal(f"{step}=kill", *scene.agents()):
        value, result = scene.call("spawn", "work", effects)
    assert effects.counts("finished")[value] == 0
    effects.open_gate()

    assert result.result(RESULTS_S) == value * value
    scene.expect(effects, value, range(1, 2))


AFTER_THE_CODE = {
    ("agent.ended", "remote"): range(2, 3),
    ("agent.recorded", "remote"): range(1, 2),
    ("agent.recorded", "map"): range(1, 2),
    ("agent.replied", "remote"): range(1, 2),
    ("agent.acked", "spawn"): range(1, 2),
}
"""How often the code runs when the agent dies at that step."""


@pytest.mark.parametrize(("step", "form"), AFTER_THE_CODE)
def test_agent_dies_after_the_code_has_ended(scene: Scene, effects: Effects, step: str, form: Form) -> None:
    value, result = scene.call(form, "work", effects)
    with scene.points.fatal(f"{step}=kill", running_agent(scene, effects)):
        effects.open_gate()

    assert result.result(RESULTS_S) == value * value
    scene.expect(effects, value, AFTER_THE_CODE[step, form])


def test_agent_dies_between_a_large_result_and_its_record(scene: Scene, effects: Effects) -> None:
    value, result = scene.call("spawn", "large", effects)
    with scene.points.fatal("agent.blob_stored=kill", running_agent(scene, effects)):
        effects.open_gate()

    assert result.result(RESULTS_S) == bytes([value]) * 300_000
    scene.expect(effects, value, range(2, 3))


def test_agent_dies_after_a_failure_was_counted(scene: Scene, effects: Effects) -> None:
    value, result = scene.call("spawn", "failing", effects)
    with scene.points.fatal("agent.counted=kill", running_agent(scene, effects)):
        effects.open_gate()

    with pytest.raises(ValueError, match=str(value)):
        result.result(RESULTS_S)
    scene.expect(effects, value, range(2, 3))  # as often as its retries allow, no more and no less


def warm(effects: Effects) -> None:
    """Both agents have containers of `work`, so that any of them may get the next call."""
    folder = effects.file.parent / "warm"
    folder.mkdir()
    other = Effects(folder)
    calls = [function("work").spawn(*other.arguments, number) for number in range(4)]
    other.wait_for_starts(4)
    other.open_gate()
    for call in calls:
        call.get(timeout=RESULTS_S)


def running_agent(scene: Scene, effects: Effects) -> Part:
    """The agent in whose container the call runs."""
    return agent_of(effects.wait_for_starts(1)[0], scene.platform)


# ---------------------------------------------------------------------- from zero containers


@pytest.mark.parametrize(
    ("number", "step"),
    [(2, "autoscaler.desired"), (3, "scheduler.claimed"), (4, "agent.claim_accepted"), (5, "agent.container_ready")],
)
def test_one_dies_while_a_container_comes(scene: Scene, effects: Effects, number: int, step: str) -> None:
    fresh = squall.Cls.from_name("chaos", "Fresh")(number=number)
    victims = scene.agents() if step.startswith("agent") else [scene.platform.part(step.partition(".")[0])]
    with scene.points.fatal(f"{step}=kill", *victims):
        result = scene.threads.submit(fresh.run.remote, str(effects.file), 7)

    assert result.result(RESULTS_S) == 7 * number
    scene.expect(effects, 7, range(1, 2))


# ---------------------------------------------------------------------- reconciler


def test_scheduler_dies_after_it_put_a_lost_input_back(scene: Scene, effects: Effects) -> None:
    autoscaler = scene.platform.signal("autoscaler", SIGSTOP)
    try:
        call = squall.Cls.from_name("chaos", "Fresh")(number=11).run.spawn(str(effects.file), 11)
        asyncio.run(lose_from_queue(scene.platform, call.object_id))
        with scene.points.fatal("scheduler.requeued=kill", scene.platform.part("scheduler"), within_s=60):
            pass
    finally:
        scene.platform.signal(autoscaler.name, SIGCONT)

    assert call.get(timeout=RESULTS_S) == 121
    scene.expect(effects, 11, range(1, 2))


def test_scheduler_dies_after_it_recorded_that_a_call_expired(scene: Scene, effects: Effects) -> None:
    autoscaler = scene.platform.signal("autoscaler", SIGSTOP)
    try:
        with scene.points.fatal("scheduler.expired=kill", scene.platform.part("scheduler")):
            model = squall.Cls.from_name("chaos", "Fresh")(number=12).run.spawn(str(effects.file), 12)
            expired = asyncio.run(store_expired(scene.platform, model.object_id))
    finally:
        scene.platform.signal(autoscaler.name, SIGCONT)

    with pytest.raises(squall.errors.CallExpiredError):
        squall.FunctionCall.from_id(expired).get(timeout=RESULTS_S)
    assert model.get(timeout=RESULTS_S) == 144
    scene.expect(effects, 12, range(1, 2))


async def lose_from_queue(platform: Platform, call: str) -> None:
    """Take an input out of WORK as if a server had lost it."""
    async with connect(platform.bus_settings(), topology.build()) as bus:
        shard = shard_of(call)
        wanted = f"calls.{invariants.REGION}.{shard:02d}.*.{call}.0"
        await async_eventually(lambda: bus.purge(subjects.work_stream(invariants.REGION, shard), wanted))


async def store_expired(platform: Platform, model: str) -> str:
    """An accepted call like that one, which waits past its deadline already; its id."""
    async with connect(platform.bus_settings(), topology.build()) as bus:
        shard = shard_of(model)
        stream = subjects.journal_stream(invariants.REGION, shard)
        wanted = f"calls.{invariants.REGION}.{shard:02d}.*.{model}.0"
        (stored,) = (await bus.get_many(stream, [wanted])).values()
        request = CallRequested.decode(stored.data)
        call = f"{model[:-4]}{'00' if model[-4:-2] != '00' else '11'}{model[-2:]}"
        late = replace(request, call=call, deadline=request.accepted_at - 1, reply_to=None)
        subject = subjects.call(invariants.REGION, late.pool, late.call, 0)
        [outcome] = await bus.publish_batch(
            [Record(subject, late.encode(), {DEADLINE_HEADER: f"{late.deadline:.3f}"}, f"{late.call}.0", 3600.0 * 5)]
        )
        assert not isinstance(outcome, Exception), outcome
        return call
