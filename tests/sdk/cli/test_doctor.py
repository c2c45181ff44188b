"""What `squall doctor` makes of the state of a bus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squall.cli.doctor import bus_findings, fsync_ms

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
