"""A machine that is taken away: nothing new goes there, what cannot finish in time runs elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.services.gpu_agent.fake_backend import FakeBackend
from tests.services.gpu_agent.scene import Scene
from tests.services.gpu_agent.test_attempts import Held, echo
from tests.support.eventually import eventually

from squall_contracts.nodes import NODES, ClaimState, NodeFact
from squall_gpu_agent.preemption import HANDOVER_S, Notice
from squall_gpu_agent.settings import AgentSettings
from squall_service.clock import SystemClock

NOW = 1000.0


class Stopped(SystemClock):
    """The time does not pass."""

    def now(self) -> float:
        return NOW


async def fact(scene: Scene, node: str) -> NodeFact:
    entry = await scene.bus.kv(NODES).get(node)
    assert entry is not None
    return NodeFact.decode(entry.value)


async def test_inputs_that_cannot_finish_before_the_machine_goes_run_elsewhere(scene: Scene, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    first, second = Held(), Held()
    second.go.set()
    async with (
        scene.agent(FakeBackend({"f": second}), "node-b"),
        scene.agent(FakeBackend({"f": first}), "node-a", preemption_file=str(notice)),
    ):
        assert (await fact(scene, "node-a")).preemptible
        assert not (await fact(scene, "node-b")).preemptible
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: first.running)

        notice.write_text(str(HANDOVER_S + 0.2))

        key = await scene.propose(pool, function, "node-b")
        await scene.claim_in(key, ClaimState.READY)
        result = await scene.result(request, within_s=6)  # sooner than any lease runs out
        assert (result.outcome, result.node) == ("succeeded", "node-b")
        assert [(a.kind, a.infra_failures) for a in await scene.attempts(request)] == [("infra", 1)]
        refused = await scene.claim_in(await scene.propose(pool, function, "node-a"), ClaimState.REFUSED)
        assert refused.reason == "the node is draining"
        assert (await fact(scene, "node-a")).draining
        assert (await fact(scene, "node-a")).leaving_at > 0


async def test_an_input_that_finishes_in_time_is_not_disturbed(scene: Scene, tmp_path: Path) -> None:
    notice, code = tmp_path / "notice", Held()
    async with scene.agent(FakeBackend({"f": code}), preemption_file=str(notice)):
        pool, function = await scene.ready()
        request = await scene.call(pool, function)
        await eventually(lambda: code.running)
        notice.write_text("60")

        async def leaving() -> bool:
            return (await fact(scene, "node-a")).draining

        await eventually(leaving)
        code.go.set()
        assert (await scene.result(request)).outcome == "succeeded"
        assert await scene.attempts(request) == []


async def test_a_notice_that_is_taken_back_opens_the_node_again(scene: Scene, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    notice.touch()
    async with scene.agent(FakeBackend({"f": echo}), preemption_file=str(notice)):

        async def draining() -> bool:
            return (await fact(scene, "node-a")).draining

        async def open_again() -> bool:
            return not await draining()

        await eventually(draining)
        notice.unlink()
        await eventually(open_again)
        pool, function = await scene.ready()
        assert (await scene.result(await scene.call(pool, function))).outcome == "succeeded"


@pytest.mark.parametrize(("text", "left_s"), [("", 30), ("12.5", 12.5), ("-1", 0), ("soon", 30), ("inf", 604_800)])
def test_the_file_may_say_how_much_time_is_left(tmp_path: Path, text: str, left_s: float) -> None:
    notice = Notice(AgentSettings(preemption_file=str(tmp_path / "notice")), Stopped())
    assert notice.leaving_at() == 0
    (tmp_path / "notice").write_text(text)
    assert notice.leaving_at() == NOW + left_s
    assert notice.time_to_finish_s(NOW + left_s) == max(0, left_s - HANDOVER_S)
    (tmp_path / "notice").unlink()
    assert notice.leaving_at() == 0


def test_being_told_to_stop_is_a_notice_on_a_preemptible_machine_only() -> None:
    firm = AgentSettings(drain_s=100, preemption_notice_s=25)
    assert Notice(firm, Stopped()).drain_s() == 100
    assert Notice(firm.model_copy(update={"preemptible": True}), Stopped()).drain_s() == 25 - HANDOVER_S
