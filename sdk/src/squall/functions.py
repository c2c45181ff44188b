"""`squall.functions.FunctionCall`, for programs that import it from here."""

from __future__ import annotations

from squall.call import FunctionCall
from squall.function import Function

__all__ = ["Function", "FunctionCall"]
