"""What is known of a machine's devices after each reading, and which containers may have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from squall_gpu_agent.policy.devices import (
    DIVIDED,
    LOST,
    SILENT,
    TAKEN_APART,
    UNDIVIDED,
    Device,
    Seen,
    changed,
    chosen,
    fold,
    unheard,
)

A = Seen(uuid="GPU-a", name="NVIDIA H100 80GB HBM3", memory_mib=81_559)
B = replace(A, uuid="GPU-b")
NONE: frozenset[str] = frozenset()


def troubles(devices: tuple[Device, ...]) -> dict[str, str]:
    return {device.uuid: device.trouble for device in devices}


def test_devices_that_are_well_can_be_assigned() -> None:
    devices = fold((), (A, B), NONE)
    assert troubles(devices) == {"GPU-a": "", "GPU-b": ""}
    assert [device.type for device in devices] == ["H100", "H100"]
    assert changed((), devices) == list(devices)
    assert changed(devices, fold(devices, (A, B), NONE)) == []


def test_a_device_that_is_missing_is_lost_until_it_is_found_again() -> None:
    before = fold((), (A, B), NONE)
    after = fold(before, (B,), NONE)
    assert troubles(after) == {"GPU-a": LOST, "GPU-b": ""}
    assert [device.uuid for device in changed(before, after)] == ["GPU-a"]
    again = fold(after, (A, B), NONE)
    assert troubles(again) == {"GPU-a": "", "GPU-b": ""}
    assert [device.uuid for device in changed(after, again)] == ["GPU-a"]


PARENT = replace(A, mig=True)
PART = replace(A, uuid="MIG-1", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", parent="GPU-a")


def test_instances_are_devices_and_their_parent_is_not_assigned() -> None:
    devices = fold((), (PARENT, PART), NONE)
    assert troubles(devices) == {"GPU-a": DIVIDED, "MIG-1": ""}
    assert [device.type for device in devices] == ["H100", "H100-MIG-1G.10GB"]


def test_an_instance_that_was_taken_apart_is_forgotten_unless_a_container_has_it() -> None:
    before = fold((), (PARENT, PART), NONE)
    assert troubles(fold(before, (PARENT,), NONE)) == {"GPU-a": UNDIVIDED}
    held = fold(before, (PARENT,), frozenset({"MIG-1"}))
    assert troubles(held) == {"GPU-a": UNDIVIDED, "MIG-1": TAKEN_APART}
    assert [device.uuid for device in changed(before, held) if device.failure] == ["MIG-1"]
    assert troubles(fold(before, (), frozenset({"MIG-1"})))["MIG-1"] == LOST


def test_instances_have_no_numbers() -> None:
    assert chosen((PARENT, B, PART), "1") == (B,)
    assert chosen((PARENT, B, PART), "MIG-1") == (PART,)


def test_a_critical_error_stays_after_it_was_told() -> None:
    devices = fold(fold((), (A,), NONE), (replace(A, xids=(79,)),), NONE)
    devices = fold(devices, (A,), NONE)
    assert troubles(devices) == {"GPU-a": "has failed: critical error XID 79 of the driver"}
    assert devices[0].failure


def test_errors_that_a_program_causes_are_not_the_devices() -> None:
    devices = fold((), (replace(A, xids=(31, 43)),), NONE)
    assert troubles(devices) == {"GPU-a": ""}


@pytest.mark.parametrize(
    ("seen", "trouble", "failed"),
    [
        (replace(A, uncorrected=2), "has 2 memory errors that could not be corrected: reset it", True),
        (replace(A, remap_failed=True), "has broken memory and no spare rows left: replace it", True),
        (replace(A, mig=True), UNDIVIDED, False),
        (replace(A, pids=(42, 43)), "is used by a program that is not squall's (process 42)", False),
    ],
)
def test_what_keeps_a_device_from_being_assigned(seen: Seen, trouble: str, failed: bool) -> None:
    (device,) = fold((), (seen,), NONE)
    assert (device.trouble, bool(device.failure)) == (trouble, failed)


def test_programs_on_a_device_that_a_container_has_are_expected() -> None:
    assert troubles(fold((), (replace(A, pids=(42,)),), frozenset({"GPU-a"}))) == {"GPU-a": ""}


def test_a_driver_that_does_not_answer_stops_assignments_but_no_container() -> None:
    devices = unheard(fold((), (A,), NONE))
    assert (devices[0].trouble, devices[0].failure) == (SILENT, "")
    assert troubles(fold(devices, (A,), NONE)) == {"GPU-a": ""}


@pytest.mark.parametrize(
    ("offered", "uuids"),
    [("1", ["GPU-b"]), ("GPU-a, 1", ["GPU-a", "GPU-b"])],
)
def test_an_agent_offers_what_it_was_told_to(offered: str, uuids: list[str]) -> None:
    assert [each.uuid for each in chosen((A, B), offered)] == uuids
