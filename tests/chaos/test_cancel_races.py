"""Cancels that meet a call at an awkward moment: it ends as cancelled, once, and its code does not go on."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import Future
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
from tests.chaos import invariants
from tests.chaos.armed import Scene
from tests.chaos.victims import RESULTS_S, Effects, function
from tests.support.eventually import eventually as async_eventually
from tests.support.platform import eventually, process

import squall
from squall_bus import connect
from squall_contracts import subjects, topology

QUEUED = 16
STOPPED_S = 3.0
"""Code that runs is asked to stop, and killed after 2 s."""


@pytest.mark.parametrize("step", ["agent.delivered", "agent.history_read", "agent.handed_over"])
def test_at_delivery(scene: Scene, effects: Effects, step: str) -> None:
    agents = scene.warm_agents(effects)
    scene.points.arm(f"{step}=stop", *agents)
    call = function("work").spawn(*effects.arguments, 1)
    stopped = eventually(
        lambda: [part for part in agents if (found := process(part.pid)) and found.state == "T"], within_s=20
    )
    scene.points.arm("", *(part for part in agents if part not in stopped))
    call.cancel()
    scene.platform.signal(stopped[0].name, SIGCONT)

    with pytest.raises(squall.errors.CallCancelledError):
        call.get(timeout=RESULTS_S)
    # If it had begun it is stopped; it must not reach the other side of the gate.
    eventually(lambda: idle(scene), within_s=20)
    time.sleep(STOPPED_S)
    effects.open_gate()
    scene.expect(effects, 1, range(1))


def test_while_it_is_published(scene: Scene, effects: Effects) -> None:
    """The journal has it, its caller does not know yet; somebody who knows the id cancels it."""
    effects.open_gate()
    autoscaler = scene.platform.signal("autoscaler", SIGSTOP)
    try:
        scene.points.arm("gateway.stored=delay:1.5", scene.platform.front)
        fresh = squall.Cls.from_name("chaos", "Fresh")(number=31)
        since = time.time()
        spawning: Future[squall.FunctionCall] = scene.threads.submit(fresh.run.spawn, str(effects.file), 31)
        known = asyncio.run(newest_call(scene, since))
        squall.FunctionCall.from_id(known).cancel()
        call = spawning.result(RESULTS_S)
    finally:
        scene.platform.signal(autoscaler.name, SIGCONT)

    assert call.object_id == known
    with pytest.raises(squall.errors.CallCancelledError):
        call.get(timeout=RESULTS_S)
    scene.expect(effects, 31, range(1))


def test_while_the_queue_is_rebuilt(scene: Scene, effects: Effects) -> None:
    """What has ended before the queue was lost comes back with it, and must not run again; what is cancelled while it
    comes back must not run at all."""
    ended = Effects(folder(effects, "ended"))
    ended.open_gate()
    for call in [function("work").spawn(*ended.arguments, value) for value in range(QUEUED)]:
        call.get(timeout=RESULTS_S)
    calls = [function("work").spawn(*effects.arguments, value) for value in range(QUEUED)]
    effects.wait_for_starts(4)

    asyncio.run(lose_queues(scene))
    with_cancels = [scene.threads.submit(call.cancel) for call in calls]
    for cancelling in with_cancels:
        cancelling.result(RESULTS_S)
    before = effects.counts("started")
    asyncio.run(queues_again(scene))
    for call in calls:
        with pytest.raises(squall.errors.CallCancelledError):
            call.get(timeout=RESULTS_S)
    effects.open_gate()
    assert function("quick").remote(1) == 2

    assert effects.counts("finished") == {}
    assert effects.counts("started") == before, "a cancelled call was begun"
    assert ended.counts("finished") == dict.fromkeys(range(QUEUED), 1), "what had ended ran again"


def folder(effects: Effects, name: str) -> Any:
    made = effects.file.parent / name
    made.mkdir()
    return made


def idle(scene: Scene) -> bool:
    """Nothing is queued or leased."""

    async def look() -> bool:
        async with connect(scene.platform.bus_settings(), topology.build()) as bus:
            return not await invariants.unsettled(bus)

    return asyncio.run(look())


async def newest_call(scene: Scene, since: float) -> str:
    """The id of the call that was accepted after that, from the journal."""
    async with connect(scene.platform.bus_settings(), topology.build()) as bus:

        async def look() -> str:
            for shard in range(invariants.SHARDS):
                stream = subjects.journal_stream(invariants.REGION, shard)
                last = await bus.stream_info(stream)
                async for stored in bus.read(stream, start_seq=last.last_seq):
                    if stored.stored_at > since:
                        return subjects.parse_call(stored.subject).call
            return ""

        return await async_eventually(look)


async def lose_queues(scene: Scene) -> None:
    """As if somebody had deleted the files of every WORK stream."""
    async with connect(scene.platform.bus_settings(), topology.build()) as bus:
        for shard in range(invariants.SHARDS):
            stream = subjects.work_stream(invariants.REGION, shard)
            answer = await bus.request(f"$JS.API.STREAM.DELETE.{stream}", b"")
            assert json.loads(answer.data).get("success"), answer.data


async def queues_again(scene: Scene) -> None:
    """Until the reconciler has made them again."""
    async with connect(scene.platform.bus_settings(), topology.build()) as bus:

        async def there() -> bool:
            request = [f"$JS.API.STREAM.INFO.{subjects.work_stream(invariants.REGION, n)}" for n in range(4)]
            answers = [json.loads((await bus.request(subject, b"")).data) for subject in request]
            return all("error" not in answer for answer in answers)

        await async_eventually(there, within_s=30)
