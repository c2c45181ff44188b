"""The squall part of the peers benchmark runs as its command says, and leaves nothing. Peers need a package index."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.platform import ROOT, belonging_to

pytestmark = pytest.mark.slow

NO_FIGURE = ("failed", "not run", "stopped at the limit", "ended with")


def test_squall_does_all_the_work_of_the_benchmark_at_a_small_scale(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--quick", "20", "--only", "squall-1s"]
    command += ["--cache", str(tmp_path / "c")]
    answer = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    rows = [line for line in answer.stdout.splitlines() if line.startswith("| ")]

    assert answer.returncode == 0, answer.stderr
    assert len(rows) == 9, answer.stdout
    assert not [row for row in rows if any(reason in row for reason in NO_FIGURE)], answer.stdout
    assert "fsync every 1s" in answer.stdout
    assert not list(belonging_to(tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]
