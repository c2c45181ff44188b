"""A service kills itself at one step of a call after the other: each acknowledged call has one result, and its code ran
as often as the step says, also after the queue has brought everything back that was not acknowledged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from signal import SIGCONT, SIGSTOP

import pytest
from tests.chaos import invariants
from tests.chaos.armed import Form, Scene
from tests.chaos.victims import RESULTS_S, Effects, agent_of, function
from tests.support.eventually import eventually as async_eventually
from tests.support.platform import Part, Platform

import squall
from squall.ids import shard_of
from squall_bus import Record, connect
from squall_contracts import subjects, topology
from squall_contracts.calls import DEADLINE_HEADER, CallRequested

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
    with scene.points.fatal(f"{step}=kill", *scene.warm_agents(effects)):
        value, result = scene.call("spawn", "work", effects)
    effects.wait_for_ends()
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
