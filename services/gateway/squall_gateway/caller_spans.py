"""Spans of a call's outside: what the gateway measured and what the caller's SDK sends a moment later, as one record.

Each stored record costs the bus server about 50 us and the gateway as much, and there is one for every call. So the
gateway's own rows are held back until the SDK's come (it posts every half second), at most for `HOLD_S`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from squall.errors import InvalidError
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.calls import SpanVector
from squall_contracts.spans import SpanBatch
from squall_service.clock import Clock

HOLD_S = 2.0
TICK_S = 1.0
MAX_HELD = 20_000
"""Calls; beyond that the oldest are stored as they are."""
MAX_BODY_BYTES = 16 << 20
MAX_BATCHES = 1000
MAX_ROWS = 200
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_NOTHING: SpanVector = []


class _Held(NamedTuple):
    batch: SpanBatch
    until: float


class CallerSpans:
    """Joins the two and stores them."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._held: dict[str, _Held] = {}
        """By call, the oldest first."""

    def hold(self, batch: SpanBatch) -> None:
        """Keep the gateway's rows of a call until its caller's come."""
        if len(self._held) >= MAX_HELD:
            self._store(self._held.pop(next(iter(self._held))).batch)
        self._held[batch.call] = _Held(batch, self._clock.monotonic() + HOLD_S)

    def take(self, batches: Iterable[SpanBatch]) -> None:
        """Store what an SDK has measured, with what is held of the same call."""
        for batch in batches:
            held = self._held.get(batch.call)
            if held is not None and _same_place(held.batch, batch):
                del self._held[batch.call]
                batch = replace(batch, rows=[*held.batch.rows, *batch.rows])
            self._store(batch)

    def held(self, call: str) -> SpanBatch | None:
        """What is not stored yet of a call."""
        held = self._held.get(call)
        return None if held is None else held.batch

    async def tick(self) -> None:
        """Store what was held for long enough: not every caller is an SDK, or posts to this gateway."""
        self._release(self._clock.monotonic())

    def close(self) -> None:
        """Store everything."""
        self._release(float("inf"))

    def _release(self, now: float) -> None:
        while self._held:
            call = next(iter(self._held))
            if self._held[call].until > now:
                return
            self._store(self._held.pop(call).batch)

    def _store(self, batch: SpanBatch) -> None:
        self._bus.publish_soon(subjects.spans(self._bus.topology.region, batch.trace_id), batch.encode())


def _same_place(held: SpanBatch, sent: SpanBatch) -> bool:
    """Whether both are about the same span of the same trace: whoever sends rows may know a call of somebody else."""
    place = (sent.trace_id, sent.parent_id, sent.index, sent.attempt)
    return (held.trace_id, held.parent_id, held.index, held.attempt) == place


# ---------------------------------------------------------------------- what an SDK sends


def read_batches(body: bytes) -> list[SpanBatch]:
    """The batches of a POST. By hand, for it comes with every call: pydantic and FastAPI took four times as long.

    Raises `InvalidError` for what would not be read back."""
    try:
        found = json.loads(body)["batches"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidError(f'the body is not {{"batches": [...]}} in JSON: {error!r}') from error
    if not isinstance(found, list) or len(found) > MAX_BATCHES:
        raise InvalidError(f"`batches` is not a list of at most {MAX_BATCHES} batches")
    return [_batch(each) for each in found]


def _batch(found: Any) -> SpanBatch:
    match found:
        case {
            "trace_id": str(trace_id),
            "parent_id": str(parent_id),
            "call": str(call),
            "index": int(index),
            "attempt": str(attempt),
        }:
            rows = _rows(found.get("rows", _NOTHING))
        case _:
            raise InvalidError(f"not a batch of trace_id, parent_id, call, index, attempt and rows: {found!r}"[:300])
    if not _TRACE_ID.fullmatch(trace_id):
        raise InvalidError(f"trace id {trace_id!r} is not 32 hex digits")
    return SpanBatch(trace_id, parent_id, call, index, attempt, rows)


def _rows(found: Any) -> SpanVector:
    if not isinstance(found, Sequence) or len(found) > MAX_ROWS:
        raise InvalidError(f"the rows of a batch are not a list of at most {MAX_ROWS}")
    for row in found:
        match row:
            case [str(), str(), str(), int(), int(), dict()]:
                pass
            case _:
                raise InvalidError(
                    f"not a row of [name, parent, service, start ns, duration ns, attributes]: {row!r}"[:300]
                )
    return list(found)
