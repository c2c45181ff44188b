"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(check: Callable[[], Awaitable[T]], *, within_s: float = ..., every_s: float = ...) -> T: ...
@overload
async def eventually(check: Callable[[], T], *, within_s: float = ..., every_s: float = ...) -> T: ...


async def eventually(check: Callable[[], Any], *, within_s: float = 30.0, every_s: float = 0.005) -> Any:
    """Call `check` until it returns something true and hand that back; fail when the time is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while True:
        outcome = check()
        value = await outcome if inspect.isawaitable(outcome) else outcome
        if value:
            return value
        if loop.time() >= until:
            raise AssertionError(f"not within {within_s} s: {inspect.getsource(check).strip()}")
        await asyncio.sleep(every_s)
