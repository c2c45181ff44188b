"""Devices as the driver tells them: a process with the C stub of NVIDIA's library reads what a test changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.nvml import FakeGpu, FakeInstance, FakeMachine, h100s

pytestmark = pytest.mark.slow  # a compiler and processes

READER = """
import dataclasses, json, sys
from squall_gpu_agent.nvml import Nvml
nvml = Nvml()
for _ in sys.stdin:
    reading = nvml.read()
    print(json.dumps({"note": reading.note, "seen": [dataclasses.asdict(each) for each in reading.seen]}), flush=True)
"""


class Reader:
    """A process that reads once for each `read`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def devices(self) -> dict[str, dict[str, Any]]:
        return {each["uuid"]: each for each in self.read()["seen"]}


@contextmanager
def reading(environment: dict[str, str]) -> Iterator[Reader]:
    command = [sys.executable, "-c", READER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **environment}, **pipes) as process:
        try:
            yield Reader(process)
        finally:
            process.kill()


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    machine = FakeMachine(tmp_path / "nvml")
    machine.add(*h100s(8))
    return machine


def test_eight_devices_are_read_with_all_that_concerns_placement(machine: FakeMachine) -> None:
    first, second, third, *_ = machine.gpus
    with reading(machine.environment) as reader:
        answer = reader.read()
        assert answer["note"] == "driver 580.95.05"
        assert [each["uuid"] for each in answer["seen"]] == list(machine.gpus)
        assert answer["seen"][0] == {
            "uuid": first,
            "name": "NVIDIA H100 80GB HBM3",
            "memory_mib": 81559,
            "memory_used_mib": 0,
            "mig": False,
            "parent": "",
            "pids": [],
            "xids": [],
            "uncorrected": 0,
            "remap_failed": False,
            "simulated": False,
        }
        machine.change(first, used_mib=1024, pids=(11, 22, 33))
        machine.change(second, mig=True)
        machine.change(third, uncorrected=2, remap_failed=True)
        found = reader.devices()
    assert (found[first]["memory_used_mib"], found[first]["pids"]) == (1024, [11, 22, 33])
    assert found[second]["mig"]
    assert (found[third]["uncorrected"], found[third]["remap_failed"]) == (2, True)


def test_instances_of_a_divided_device_are_read_as_devices(machine: FakeMachine) -> None:
    first, second, *_ = machine.gpus
    small = FakeInstance(uuid="MIG-a", used_mib=12, pids=(7,))
    large = FakeInstance(uuid="MIG-b", slices=3, compute=1, memory_mib=40_448)
    machine.change(first, mig=True, instances=(small, large))
    machine.change(second, mig=True)
    with reading(machine.environment) as reader:
        found = reader.devices()
        assert list(found) == [*machine.gpus, "MIG-a", "MIG-b"], "whole devices keep their numbers"
        assert found["MIG-a"]["name"] == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
        assert found["MIG-b"]["name"] == "NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb"
        told = [found["MIG-a"][name] for name in ("parent", "memory_mib", "memory_used_mib", "pids", "mig")]
        assert told == [first, 9_984, 12, [7], False]
        machine.change(first, state="xid=79")
        assert reader.devices()["MIG-a"]["xids"] == [79], "what befalls the device befalls its instances"
        machine.change(first, instances=(large,))
        assert "MIG-a" not in reader.devices()
        machine.change(first, state="lost")
        assert "MIG-b" not in reader.devices()


def test_a_lost_device_is_missing_and_the_others_are_there(machine: FakeMachine) -> None:
    lost, *others = machine.gpus
    with reading(machine.environment) as reader:
        assert len(reader.devices()) == 8
        machine.change(lost, state="lost")
        assert list(reader.devices()) == others


def test_a_critical_error_is_told_by_the_reading_after_it(machine: FakeMachine) -> None:
    first = next(iter(machine.gpus))
    with reading(machine.environment) as reader:
        reader.read()
        machine.change(first, state="xid=79")
        assert reader.devices()[first]["xids"] == [79]
        assert reader.devices()[first]["xids"] == []


def test_without_the_library_there_is_no_driver(tmp_path: Path) -> None:
    with reading({"LD_LIBRARY_PATH": str(tmp_path)}) as reader:
        assert reader.read() == {"note": "no NVIDIA driver", "seen": []}


def test_a_driver_that_comes_and_goes_is_found_and_missed(machine: FakeMachine) -> None:
    machine.unload_driver()
    with reading(machine.environment) as reader:
        assert reader.read() == {"note": "no NVIDIA driver that works: Driver Not Loaded", "seen": []}
        machine.write()
        assert len(reader.read()["seen"]) == 8
        machine.unload_driver()
        assert reader.read()["seen"] == []
        machine.add(FakeGpu(uuid="GPU-new"))
        assert len(reader.read()["seen"]) == 9
