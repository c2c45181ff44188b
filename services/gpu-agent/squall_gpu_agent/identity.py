"""Who this agent is: the node's name and the part of the bus that it works on. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Fixed for the life of the process."""

    node: str
    region: str
    shards: int
