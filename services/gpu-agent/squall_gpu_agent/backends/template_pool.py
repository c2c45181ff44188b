"""Which templates exist: one per key, made once for any number of callers, the least recently used retired."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from squall_gpu_agent.backend import NoTemplate
from squall_gpu_agent.backends.process_template import ProcessTemplate

T = TypeVar("T", bound=ProcessTemplate)


@dataclass(slots=True)
class _Trial:
    """One try to make a template."""

    failed: NoTemplate | None = None
    """How it went, where it came to nothing."""


@dataclass(slots=True)
class _Place(Generic[T]):
    """What is known about one key."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    template: T | None = None
    refused: NoTemplate | None = None
    """Why there will never be one; None while that is not known."""
    trial: _Trial | None = None
    """The one that goes on."""


class TemplatePool(Generic[T]):
    """Templates by key. Knows nothing of what they are templates of."""

    def __init__(self, most: int) -> None:
        self._most = most
        # The first is the one that was not used for the longest time.
        self._places: dict[str, _Place[T]] = {}

    async def get(self, key: str, make: Callable[[], Awaitable[T | NoTemplate]]) -> T | NoTemplate:
        """The template of that key, made by `make` if there is none. Lasting refusals are remembered; others are those
        of all who waited for the same try, or each would wait for one more."""
        place = self._places.pop(key, None) or _Place()
        self._places[key] = place
        waited_for = place.trial
        async with place.lock:
            if place.refused is not None:
                return place.refused
            if place.template is None:
                if waited_for is not None and waited_for.failed is not None:
                    return waited_for.failed
                place.trial = trial = _Trial()
                try:
                    found = await make()
                finally:
                    place.trial = None
                if isinstance(found, NoTemplate):
                    trial.failed, place.refused = found, found if found.lasting else None
                    return found
                self._add(place, found)
                return found
            return place.template

    def retire(self, key: str) -> None:
        """Nobody will ask for that one again."""
        place = self._places.get(key)
        if place is not None and place.template is not None:
            place.template.retire()
        if place is not None and not place.lock.locked():
            del self._places[key]

    def all(self) -> list[T]:
        """Those that can be forked."""
        return [place.template for place in self._places.values() if place.template is not None]

    def kill_all(self) -> None:
        """End them, with everything that was forked from them."""
        for template in self.all():
            template.kill()
            template.close()
        self._places.clear()

    def _add(self, place: _Place[T], template: T) -> None:
        if template.gone:  # it has ended since: whoever asks next has another made
            return
        place.template = template

        def gone() -> None:
            if place.template is template:
                place.template = None

        template.on_gone = gone
        living = self.all()
        for surplus in living[: max(0, len(living) - self._most)]:
            surplus.retire()
