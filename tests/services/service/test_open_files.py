"""Services may have more files open than a process that is started from a shell."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKED = """
import resource, sys
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from squall_service.open_files import allow_many_open_files
allow_many_open_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "then"), [(512, 2048, 2048), (2048, 2048, 2048)])
def test_as_many_as_the_owner_of_the_machine_allows(soft: int, hard: int, then: int) -> None:
    told = subprocess.run(
        [sys.executable, "-c", ASKED, str(soft), str(hard)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == [str(then), str(hard)]
