"""Decisions of autoscaler and scheduler that others read: desired counts, and verdicts on what could not be placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall_contracts.envelope import HotMessage, Message

DESIRED, VERDICTS = "desired", "verdicts"


@dataclass(frozen=True)
class Desired(Message):
    """How many containers a pool should have. Bucket `desired`, key = pool; owner: autoscaler
    (any instance may write 0 -> 1 by CAS)."""

    TYPE: ClassVar[str] = "desired"

    pool: str
    count: int
    reason: str
    decision: str
    decided_at: float
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """The sample that the decision was made from."""
    started_ns: int = 0
    """Wall clock when the autoscaler saw the need, for the span `autoscaler.decide`."""
    cold_call: str = ""
    """The call whose arrival triggered 0 -> 1."""


@dataclass(frozen=True)
class WebDemand(HotMessage):
    """Web requests of a pool at one gateway. Core subject `demand.r.<pool>`: every half second while there are any, at
    once when the first one has to wait, and a last time with zeros."""

    TYPE: ClassVar[str] = "web_demand"

    pool: str
    gateway: str
    held: int
    """Without a container so far."""
    running: int


@dataclass(frozen=True)
class Verdict(Message):
    """Why a pool does not get (all) its containers. Bucket `verdicts`, key = pool, deleted when it no longer holds;
    owner: scheduler."""

    TYPE: ClassVar[str] = "verdict"

    pool: str
    at: float
    missing: int
    """Containers wanted but not placed."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Reason by node."""
    message: str = ""
    """One sentence for the waiting user."""
    retry_at: float = 0.0
    """Crash-loop back-off: no new start before."""
    failures: int = 0
    """Starts that failed in a row; a restarted scheduler goes on counting from here."""
    user_error: bool = False
    """They failed in the function's own code: its import, or an `@enter` hook."""
    killed: int = 0
    """Starts in a row that something killed which is not their agent, with no container ready in between."""
