"""Schedules: what is called by itself, when it was called last, and the ticks that the bus sends."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall.spec import ScheduleSpec, digest, to_wire
from squall_contracts.envelope import HotMessage, Message

SCHEDULES = "schedules"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True)
class ScheduleRecord(Message):
    """The schedule of one function of one app. Bucket `schedules`, key = its id. The scheduler makes it from what apps
    declare and moves it on with each tick; gateways pause and resume it. Every write is a compare-and-set."""

    TYPE: ClassVar[str] = "schedule_record"

    schedule_id: str
    app_id: str
    app_name: str
    workspace: str
    environment: str
    function: str
    """Its name; a tick runs the version that is present then."""
    spec: ScheduleSpec
    generation: str
    """Another one when the declared schedule is another; the same for a deploy that leaves it as it was."""
    since: float
    """Where periods are counted from."""
    handled: float
    """The last tick that was decided on: called or missed. Ticks are never decided twice."""
    next_tick: float = 0.0
    """0 = not known yet."""
    paused: bool = False
    called: int = 0
    missed: int = 0
    recent: list[list[Any]] = field(default_factory=list)
    """[tick, decided at, call] of the last ones, newest first; without a call it was missed."""


@dataclass(frozen=True)
class Tick(HotMessage):
    """A schedule is due. Lies under `sched.r.<schedule>` until its time has come, then under `fire.r.<schedule>`."""

    TYPE: ClassVar[str] = "tick"

    schedule_id: str
    generation: str
    tick: float


def schedule_id(app_id: str, function: str) -> str:
    """`sc-` and 20 hex digits: the schedule of a function of an app."""
    return "sc-" + digest([app_id, function])[:20]


def generation_of(spec: ScheduleSpec) -> str:
    """What tells one declared schedule from another."""
    return digest(to_wire(spec))[:12]


def call_of_tick(record: ScheduleRecord, tick: float, shards: int) -> str:
    """The id of the one call of a tick: whoever makes it, and however often, it is the same call."""
    name = f"{record.schedule_id}/{record.generation}/{tick:.3f}"
    hashed = hashlib.sha256(name.encode()).digest()
    shard = int.from_bytes(hashed[:4], "big") % shards
    random = "".join(_ALPHABET[byte % 32] for byte in hashed[4:18])
    return f"fc-{_time(tick)}{random}{shard:02d}"


def _time(at: float) -> str:
    number, digits = round(at * 1000), []
    for _ in range(10):
        number, rest = divmod(number, 32)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits))
