"""What is known about the health of the bus, as it lies in the bucket `health`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from squall_contracts.envelope import Message

HEALTH = "health"


@dataclass(frozen=True)
class StreamsChecked(Message):
    """The last round of canaries of one shard. Bucket `health`, key `streams-<shard>`, gone after 2 minutes; owner: the
    scheduler that reconciles the shard. Shard 00 has the streams and buckets of the region too."""

    TYPE: ClassVar[str] = "streams_checked"

    at: float
    streams: int
    """How many were written and read."""
    slowest: str
    """The stream that took longest."""
    slowest_ms: float
    failing: Mapping[str, str] = field(default_factory=dict)
    """Stream -> what happened instead."""


def streams_key(shard: int) -> str:
    """Key of a shard's record."""
    return f"streams-{shard:02d}"
