"""Runs callbacks of our users. Their errors are logged and counted, and never stop the bus."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from squall_bus.records import BusStats

T = TypeVar("T")
_log = logging.getLogger("squall_bus")


def event(level: int, name: str, /, **fields: object) -> None:
    """One structured log event; squall_service.telemetry prints `fields`."""
    _log.log(level, name, extra={"fields": fields})


def run_callback(callback: Callable[[T], object], argument: T, stats: BusStats) -> None:
    """Call it; an exception is the caller's bug and must not reach the read loop."""
    try:
        callback(argument)
    except Exception as error:
        _failed(callback, error, stats)


async def await_callback(callback: Callable[[T], Awaitable[None]], argument: T, stats: BusStats) -> None:
    """The same for a coroutine function."""
    try:
        await callback(argument)
    except Exception as error:
        _failed(callback, error, stats)


def _failed(callback: Callable[..., object], error: Exception, stats: BusStats) -> None:
    stats.callback_errors += 1
    name = getattr(callback, "__qualname__", repr(callback))
    _log.error("bus_callback_failed", exc_info=error, extra={"fields": {"callback": name}})
