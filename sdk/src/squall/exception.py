"""The errors under the name that programs catch them by: `squall.exception.FunctionTimeoutError` and so on."""

from __future__ import annotations

from squall.errors import *  # noqa: F403
