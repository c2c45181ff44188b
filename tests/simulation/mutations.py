"""Bugs, put in on purpose: what the simulation must catch. Each is a patch of squall's own code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from squall_gpu_agent.history import NO_PAST, History
from squall_gpu_agent.policy import retry
from squall_gpu_agent.settlement import Settlement

Patch = tuple[Any, str, Any]


def _no_history() -> list[Patch]:
    async def read(self: History, held: object) -> object:
        return NO_PAST

    return [(History, "read", read)]


MUTATIONS: dict[str, Callable[[], list[Patch]]] = {"no_history": _no_history}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """With this bug while the block runs."""
    patches = MUTATIONS[name]() if name is not None else []
    before = [(target, attribute, target.__dict__[attribute]) for target, attribute, _ in patches]
    for target, attribute, value in patches:
        setattr(target, attribute, value)
    try:
        yield
    finally:
        for target, attribute, value in before:
            setattr(target, attribute, value)


__all__ = ["MUTATIONS", "Settlement", "mutated", "retry"]
