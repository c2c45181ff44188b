"""Whether a machine takes a container that the scheduler proposes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from squall.spec import Resources
from squall_contracts.nodes import ContainerClaim
from squall_gpu_agent.capacity import smaller
from squall_gpu_agent.policy.acceptance import Accept, Machine, Refuse, Wanted, decide

WANTED = Wanted(cpu=1, memory_mib=1024, gpus=(), gpus_required=False, isolation="process", python_version="3.11")
MACHINE = Machine(
    cpu=4,
    memory_mib=8192,
    max_containers=10,
    cpu_used=0,
    memory_used_mib=0,
    containers=0,
    gpus=frozenset({"gpu-0", "gpu-1", "gpu-2"}),
    gpus_used=frozenset({"gpu-1"}),
    gpu_troubles={"gpu-2": "is lost"},
    isolation="sandbox",
    python_versions=("3.10", "3.11"),
    draining=False,
)


def test_there_is_room() -> None:
    assert isinstance(decide(WANTED, MACHINE), Accept)


def test_a_machine_without_disks_for_containers_takes_those_that_need_none() -> None:
    assert isinstance(decide(WANTED, replace(MACHINE, no_disks="no loop devices")), Accept)


def test_an_image_that_brings_its_own_python_needs_none_of_the_machine() -> None:
    assert isinstance(decide(replace(WANTED, python_version=""), MACHINE), Accept)


def test_tenths_of_cores_that_add_up_to_the_machine_fit() -> None:
    used = sum([0.1] * 9)
    assert isinstance(decide(replace(WANTED, cpu=0.1), replace(MACHINE, cpu=1, cpu_used=used)), Accept)


@pytest.mark.parametrize(
    ("wanted", "machine", "reason"),
    [
        ({}, {"draining": True}, "the node is draining"),
        ({"isolation": "gvisor"}, {}, "needs isolation 'gvisor', the node offers 'sandbox'"),
        ({"isolation": "magic"}, {}, "isolation 'magic' is not known here"),
        ({"python_version": "3.13"}, {}, "needs Python 3.13, the node has 3.10, 3.11"),
        ({"disk_mib": 1024}, {"no_disks": "no loop devices"}, "needs ephemeral_disk=1024; no loop devices"),
        ({"gpus": ("gpu-0",)}, {"no_gpus": "gVisor has none"}, "needs a GPU; gVisor has none"),
        ({"gpus_required": True}, {}, "needs a GPU, none was chosen for it"),
        ({"gpus": ("gpu-9",)}, {}, "the node has no GPU gpu-9"),
        ({"gpus": ("gpu-1",)}, {}, "GPU gpu-1 is taken"),
        ({"gpus": ("gpu-0", "gpu-2")}, {}, "GPU gpu-2 is lost"),
        ({}, {"containers": 10}, "has 10 containers, the most allowed"),
        ({"cpu": 2}, {"cpu_used": 3}, "needs 2 cores, 1 free"),
        ({"memory_mib": 4096}, {"memory_used_mib": 8000}, "needs 4096 MiB, 192 MiB free"),
    ],
)
def test_a_refusal_says_what_is_missing(wanted: dict[str, object], machine: dict[str, object], reason: str) -> None:
    decision = decide(replace(WANTED, **wanted), replace(MACHINE, **machine))  # type: ignore[arg-type]
    assert decision == Refuse(reason)


@given(st.lists(st.tuples(st.floats(0.1, 8), st.integers(1, 8192)), max_size=30))
def test_never_more_is_accepted_than_the_machine_has(containers: list[tuple[float, int]]) -> None:
    machine = MACHINE
    for cpu, memory_mib in containers:
        if isinstance(decide(replace(WANTED, cpu=cpu, memory_mib=memory_mib), machine), Accept):
            machine = replace(
                machine,
                cpu_used=machine.cpu_used + cpu,
                memory_used_mib=machine.memory_used_mib + memory_mib,
                containers=machine.containers + 1,
            )
    assert machine.cpu_used <= machine.cpu + 0.001
    assert machine.memory_used_mib <= machine.memory_mib
    assert machine.containers <= machine.max_containers


def test_a_container_with_less_than_it_asks_for_is_told_so() -> None:
    claim = ContainerClaim(
        pool="po-1",
        ordinal=0,
        container="co-1",
        node="n",
        function_id="fu-1",
        app_id="ap-1",
        workspace="main",
        state="proposed",
        created_at=0,
        updated_at=0,
        cpu=2,
        memory_mib=512,
    )
    assert smaller(claim, Resources(cpu=2, memory_mib=512)) == []
    assert smaller(replace(claim, cpu=0, memory_mib=0), Resources(cpu=8, memory_mib=512)) == []
    cores, memory = smaller(claim, Resources(cpu=64, memory_mib=1024))
    assert "64 cores" in cores
    assert "kept for it: 2" in cores
    assert "kept for it: 512 MiB" in memory
