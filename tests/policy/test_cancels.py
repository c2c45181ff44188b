"""Cancels that an agent remembers."""

from __future__ import annotations

from tests.support.clock import FakeClock

from squall_gpu_agent.cancels import REMEMBER_S, Cancels


def test_a_cancel_is_remembered_for_its_own_call_only_also_on_a_machine_that_has_just_started() -> None:
    cancels = Cancels(FakeClock(now=5.0))

    cancels.remember("po-1", "fc-a", None)
    cancels.remember("po-1", "fc-b", 1)

    assert cancels.recent("po-1", "fc-a", 7)
    assert cancels.recent("po-1", "fc-b", 1)
    assert not cancels.recent("po-1", "fc-b", 0)
    assert not cancels.recent("po-1", "fc-c", 0)
    assert not cancels.recent("po-2", "fc-a", 7)


async def test_a_cancel_is_forgotten_after_its_time() -> None:
    clock = FakeClock(now=5.0)
    cancels = Cancels(clock)
    cancels.remember("po-1", "fc-a", None)

    await clock.advance(REMEMBER_S + 1)

    assert not cancels.recent("po-1", "fc-a", 0)
