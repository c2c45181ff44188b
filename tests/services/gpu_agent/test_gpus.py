"""The devices of a machine as the agent keeps them: what a slow or sick driver does to that."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from squall import exception
from squall_gpu_agent.gpus import Gpus, Nothing, Reading, Simulated, simulated
from squall_gpu_agent.policy.devices import LOST, SILENT, Seen

A = Seen(uuid="GPU-a", name="NVIDIA H100 80GB HBM3", memory_mib=81_559)
NONE: frozenset[str] = frozenset()


class SlowDriver:
    """Answers when it may."""

    changes = True

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = 0

    def read(self) -> Reading:
        self.asked += 1
        assert self.may_answer.wait(30)
        return Reading(seen=(A,), note="driver 1")


async def test_a_driver_that_hangs_stops_assignments_and_is_asked_no_second_time_meanwhile() -> None:
    driver = SlowDriver()
    gpus = Gpus(driver, timeout_s=0.02)
    await gpus.read(NONE)
    assert [fact.trouble for fact in gpus.facts()] == [""]

    driver.may_answer.clear()
    (device,) = await gpus.read(NONE)
    assert (device.trouble, device.failure) == (SILENT, "")  # it may be well: what runs on it goes on
    await gpus.read(NONE)
    assert driver.asked == 2

    driver.may_answer.set()
    while gpus.devices[0].trouble:
        await gpus.read(NONE)
    assert driver.asked == 2


class Machine:
    """Two devices, until one is lost."""

    changes = True

    def __init__(self) -> None:
        self.seen = (A, replace(A, uuid="GPU-b"))

    def read(self) -> Reading:
        return Reading(seen=self.seen, note="driver 1")


async def test_a_number_means_the_device_that_had_it_first() -> None:
    machine = Machine()
    gpus = Gpus(machine, "0")
    await gpus.read(NONE)
    machine.seen = machine.seen[1:]
    await gpus.read(NONE)
    assert [(fact.uuid, fact.trouble) for fact in gpus.facts()] == [("GPU-a", LOST)]


def test_devices_in_name_only_have_uuids_of_their_node() -> None:
    found = simulated("h100:2, L4", "node-a")
    assert [(each.uuid, each.memory_mib, each.simulated) for each in found] == [
        ("sim-node-a-h100-0", 81_559, True),
        ("sim-node-a-h100-1", 81_559, True),
        ("sim-node-a-l4-2", 23_034, True),
    ]


@pytest.mark.parametrize("declaration", ["H100:0", "H100:x", "H10", "any:2", "B200+:1", "H100:2000", ":3"])
def test_what_cannot_be_simulated_is_refused(declaration: str) -> None:
    with pytest.raises(exception.InvalidError, match="is not a type of device and a number of them"):
        simulated(declaration, "node-a")


async def test_only_what_can_change_is_read_again() -> None:
    idle, driver = Gpus(Nothing()), Gpus(SlowDriver(), interval_s=0.5)
    assert idle.read_again_s == Gpus(Simulated("H100", "n")).read_again_s == 0
    assert driver.read_again_s == 30
    await driver.read(NONE)
    assert driver.read_again_s == 0.5


class BrokenDriver:
    """A driver whose library raises what nobody expects, once."""

    changes = True

    def __init__(self) -> None:
        self.asked = 0

    def read(self) -> Reading:
        self.asked += 1
        if self.asked == 2:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return Reading(seen=(A,), note="driver 1")


async def test_a_reading_that_breaks_stops_assignments_until_the_next_one() -> None:
    gpus = Gpus(BrokenDriver())
    await gpus.read(NONE)
    await gpus.read(NONE)
    assert [fact.trouble for fact in gpus.facts()] == [SILENT]

    await gpus.read(NONE)

    assert [fact.trouble for fact in gpus.facts()] == [""]
