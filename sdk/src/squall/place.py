"""Where this code runs: in a container or elsewhere, and for which input."""

from __future__ import annotations

import os
from typing import Optional


def is_local() -> bool:
    """True everywhere but in a container of a function."""
    return os.environ.get("SQUALL_CONTAINER") != "1"


def current_function_call_id() -> Optional[str]:
    """Id of the call that this code runs for; None outside of one."""
    from squall_runner import context

    return context.current_function_call_id()


def current_input_id() -> Optional[str]:
    """Id of the input that this code runs for; None outside of one."""
    from squall_runner import context

    return context.current_input_id()
