"""The line: inputs that one runner has, in the order in which it got them, and which of them has begun.

A runner that does one input after the other gets some ahead, so that neither side waits for the other between two short
ones. Owns when the next has begun, and asking back what waits behind an input that takes long. Sends nothing itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from squall_gpu_agent.backend import End, Exit, InputRequest, Lost, NotBegun, OnBegin, OnItem
from squall_gpu_agent.runner_words import Key

MOVES_S = 0.025
"""What waits in a line that has not moved for so long is asked back: it may find a free container elsewhere."""


@dataclass(slots=True, eq=False)
class Given:
    """One input that the runner was given."""

    request: InputRequest
    end: asyncio.Future[End | NotBegun]
    on_item: OnItem | None
    on_begin: OnBegin | None
    begun: bool = False
    recalled: bool = False
    """Asked back: whether it has begun is known when the runner has answered."""
    items: int = 0
    key: Key = field(init=False)
    """Call and index."""

    def __post_init__(self) -> None:
        self.key = (self.request.call, self.request.index)

    def begin(self) -> None:
        """Its code runs."""
        if not self.begun:
            self.begun = True
            if self.on_begin is not None:
                self.on_begin()

    def ended(self, end: End | NotBegun) -> None:
        """Tell who waits for it."""
        if not self.end.done():
            self.end.set_result(end)


class Line:
    """Everything that one runner has."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ask_back: Callable[[Given], None]) -> None:
        self._loop = loop
        self._ask_back = ask_back
        self._given: dict[Key, Given] = {}
        self._ordered = False
        self._closed = False
        self._slow: Given | None = None
        """The input behind which nobody waits any more."""
        self._look_timer: asyncio.TimerHandle | None = None
        self.empty = asyncio.Event()
        self.empty.set()

    def order(self) -> None:
        """The runner does one after the other. Without this word each begins at once."""
        self._ordered = True

    def close(self) -> None:
        """From now on nothing is given ahead."""
        self._closed = True

    @property
    def open(self) -> bool:
        """Whether inputs may be given ahead."""
        return self._ordered and not self._closed and self._slow is None

    @property
    def keys(self) -> frozenset[Key]:
        """Inputs that have not ended."""
        return frozenset(self._given)

    @property
    def only(self) -> Given | None:
        """The input whose code runs, if there is just one."""
        begun = [given for given in self._given.values() if given.begun]
        return begun[0] if len(begun) == 1 else None

    def __len__(self) -> int:
        return len(self._given)

    def get(self, key: Key) -> Given | None:
        """One that has not ended."""
        return self._given.get(key)

    def __iter__(self) -> Iterator[Given]:
        return iter(list(self._given.values()))

    def add(self, given: Given) -> None:
        """The runner was given it."""
        self._given[given.key] = given
        self.empty.clear()
        if not self._ordered:
            given.begin()
        else:
            self._moved()

    def remove(self, given: Given) -> None:
        """It has ended, or was given back; the next one's turn has come."""
        if self._given.get(given.key) is not given:
            return
        del self._given[given.key]
        if self._slow is given:
            self._slow = None
        if not self._given:
            self.empty.set()
        elif self._ordered:
            self._moved()

    def recall(self) -> None:
        """Ask for everything that has not begun."""
        for given in self:
            if not given.begun:
                self.recall_one(given)

    def recall_one(self, given: Given) -> None:
        """Ask for one that has not begun."""
        if not given.recalled:
            given.recalled = True
            self._ask_back(given)

    def lost(self, exit: Exit) -> None:
        """The runner has ended, and everything that it said was heard: only the first of the line can have begun."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        line, self._given = self._given, {}
        for place, given in enumerate(line.values()):
            begun = given.begun or place == 0
            given.ended(Lost(exit=exit) if begun else NotBegun(exit=exit))
        self.empty.set()

    def _moved(self) -> None:
        first = next(iter(self._given.values()))
        if not first.recalled:
            first.begin()
        if len(self._given) > 1 and self._look_timer is None:
            self._look_timer = self._loop.call_later(MOVES_S, self._look, first)

    def _look(self, first_before: Given) -> None:
        self._look_timer = None
        if len(self._given) < 2:
            return
        first = next(iter(self._given.values()))
        if first is first_before:
            self._slow = first
            self.recall()
        else:
            self._look_timer = self._loop.call_later(MOVES_S, self._look, first)
