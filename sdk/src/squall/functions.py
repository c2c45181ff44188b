"""`squall.functions.FunctionCall`, for programs that import it from here."""

from __future__ import annotations

from typing import Any

from squall.call import FunctionCall
from squall.function import Function
from squall.old_names import warn_renamed

__all__ = ["Function", "FunctionCall", "gather"]


def gather(*function_calls: FunctionCall) -> list[Any]:
    """The old name of `FunctionCall.gather`: it works, and says what it is called now."""
    warn_renamed("`functions.gather` is called `FunctionCall.gather` now")
    found: list[Any] = FunctionCall.gather(*function_calls)
    return found
