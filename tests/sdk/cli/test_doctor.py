"""What `squall doctor` makes of the state of a bus."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.nvml import FakeMachine, h100s

from squall.cli.doctor import bus_findings, fsync_ms, gpu_findings
from squall.http_api.fleet import GpuInfo, NodeInfo

WELL: dict[str, Any] = {
    "bus_version": "2.15.1",
    "durability": "fsync always",
    "replicas": 3,
    "storage_full": "",
    "store_used_bytes": 3 << 30,
    "store_limit_bytes": 200 << 30,
    "clock_skews_s": {"gateway": 0.01, "gpu-1": -0.02},
    "streams_checked": 40,
    "streams_slowest_ms": 12.0,
    "streams_failing": {},
}


def test_all_is_well() -> None:
    findings = list(bus_findings(WELL))

    assert [(f.what, f.state) for f in findings] == [
        ("bus", "ok"),
        ("bus store", "ok"),
        ("clocks", "ok"),
        ("streams", "ok"),
    ]
    assert "2.15.1, fsync always, 3 of each record" in findings[0].text
    assert "3.00 GiB used of 200" in findings[1].text
    assert "40 written and read, the slowest in 12 ms" in findings[3].text


@pytest.mark.parametrize(
    ("change", "what", "state", "words"),
    [
        ({"durability": "fsync every 1s: ..."}, "bus", "bad", "fsync every 1s"),
        ({"storage_full": "the disk has 3 MiB left"}, "bus store", "bad", "the disk has 3 MiB left"),
        ({"clock_skews_s": {"gateway": 0.0, "gpu-1": -7.25}}, "clocks", "bad", "gpu-1 is 7.2 s behind"),
        ({"clock_skews_s": {"gateway": 3.0, "gpu-1": 0.0}}, "clocks", "bad", "gateway is 3.0 s ahead of"),
        ({"streams_failing": {"RESULTS_eu_03": "no answer"}}, "streams", "bad", "RESULTS_eu_03: no answer"),
        ({"streams_checked": 0}, "streams", "note", "not checked yet"),
    ],
)
def test_what_is_wrong_is_found_and_comes_with_what_to_do(
    change: dict[str, Any], what: str, state: str, words: str
) -> None:
    (found,) = [finding for finding in bus_findings({**WELL, **change}) if finding.what == what]

    assert found.state == state
    assert words in found.text
    assert found.fix or state == "note"


def test_a_server_that_says_less_is_no_error() -> None:
    (found,) = bus_findings({"bus_version": "2.15.1"})
    assert found.state == "note"


def test_the_disk_is_measured_and_one_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    p50, p99 = fsync_ms(tmp_path)
    assert p50 is not None
    assert 0 < p50 <= p99
    assert fsync_ms(tmp_path / "nothing") == (None, 0.0)


def a_node(*devices: GpuInfo, note: str = "driver 580.95.05") -> NodeInfo:
    return NodeInfo(
        node="n1", region="local", backends=(), cpu=1, cpu_used=0, memory_mib=1, memory_used_mib=0, gpus=(),
        containers=0, draining=False, seen_at=0, devices=devices, gpu_note=note,
    )  # fmt: skip


def test_devices_of_the_machines_are_told_simulated_ones_as_such_and_troubles_as_bad() -> None:
    real, lost = GpuInfo("GPU-1", "H100", used=True), GpuInfo("GPU-2", "H100", trouble="is lost")
    nodes = [a_node(real, lost), a_node(GpuInfo("sim-1", "L4", simulated=True)), a_node(note="no NVIDIA driver")]

    assert [(found.what, found.state, found.text) for found in gpu_findings(nodes)] == [
        ("node", "ok", "n1 has 2 H100 (1 used, 1 in trouble)"),
        ("gpu", "bad", "n1: GPU-2 (H100) is lost"),
        ("node", "note", "n1 has 1 L4 (simulated)"),
        ("node", "ok", "n1 is a CPU node (no NVIDIA driver)"),
    ]


@pytest.mark.slow
def test_the_driver_of_this_machine_is_asked(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path / "nvml")
    machine.add(*h100s(3))

    def asked() -> str:
        program = "from squall.cli import doctor; print([f.text for f in doctor._backends() if f.what == 'gpu'][0])"
        environment = {**os.environ, **machine.environment}
        return subprocess.check_output([sys.executable, "-c", program], env=environment, text=True, timeout=30)

    assert asked() == "an NVIDIA driver is loaded, with 3 devices\n"
    machine.unload_driver()
    assert asked() == "no NVIDIA driver: this machine is a CPU node, functions with gpu= find nothing here\n"
