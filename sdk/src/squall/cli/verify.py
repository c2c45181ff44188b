"""`squall verify`: hands over to the verification harness, which comes with the platform."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from squall.errors import LocalPlatformError


def verify(arguments: Sequence[str]) -> NoReturn:
    """Becomes the harness, so that signals and the exit status are its own."""
    if importlib.util.find_spec("squall_verify") is None:
        raise LocalPlatformError(
            "the verification harness is not installed", fix="Install it: pip install 'squall-platform[local]'."
        )
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "squall_verify", *arguments])
