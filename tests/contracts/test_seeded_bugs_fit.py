"""The bugs that tests/chaos puts into the services still fit the code that they replace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BUGS = Path(__file__).parents[1] / "chaos" / "bugs"
LOAD = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
import seeded_bugs
sys.meta_path.insert(0, seeded_bugs.Patching("/nowhere"))
sys.argv[0] = "squall_gateway/__main__.py"
for module in list(seeded_bugs.PATCHES):
    importlib.import_module(module)
print(len(seeded_bugs.BUGS))
"""


def test_every_seeded_bug_fits_the_code() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(BUGS)], check=False, capture_output=True, text=True, timeout=60
    )

    assert loaded.returncode == 0, loaded.stderr
    assert int(loaded.stdout) >= 16
