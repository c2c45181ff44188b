"""The vocabulary of calls: how one was made, how it ends, how its payloads are encoded; their limits."""

from __future__ import annotations

import enum

INLINE_LIMIT_BYTES = 64 * 1024
"""Payloads above this go through the blob store."""
MAX_PAYLOAD_BYTES = 4 * 1024**3
"""Largest argument or result payload."""
MAX_INFRA_FAILURES = 8
"""Container crashes, OOM kills and lost agents after which a call ends `failed(infra)`."""
CHUNK_INPUTS = 1000
"""Most inputs of a map in one request, and in one atomic write."""


class Kind(str, enum.Enum):
    """How a call was made; decides how its result travels and how long it is kept."""

    REMOTE = "remote"
    MAP = "map"
    SPAWN = "spawn"
    GENERATOR = "generator"


class Outcome(str, enum.Enum):
    """The five ways a call ends."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Encoding(str, enum.Enum):
    """How payload bytes are encoded; services never look inside."""

    PICKLE = "pickle"
    JSON = "json"
    MSGPACK = "msgpack"
