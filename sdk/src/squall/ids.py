"""Identifiers: how ids are made and what can be read off them. Owns the id grammar; keeps no state.

A call id is `fc-` and 26 characters: 10 of time (milliseconds, so ids sort by creation), 14 random, and the two
decimal digits of its shard, which place every record of the call in the same set of streams.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from functools import lru_cache

from squall.errors import InvalidError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: sorts like the number, no look-alikes
_OF_BYTE = (_ALPHABET * 8).encode()  # every digit stands for 8 of the 256 bytes, so random bytes give random digits
_ODD_DIGITS = frozenset("13579bdf")
CALL_ID = re.compile(r"fc-[0-9a-hjkmnp-tv-z]{24}[0-9]{2}")
TOKEN = re.compile(r"[a-z0-9-]+")
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
TAG = re.compile(r"[A-Za-z0-9._-]{1,50}")


def _encode(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 32)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits))


def new_id(prefix: str) -> str:
    """A new sortable id: prefix, dash, 10 characters of time and 14 random ones."""
    return f"{prefix}-{_encode(time.time_ns() // 1_000_000, 10)}{os.urandom(14).translate(_OF_BYTE).decode()}"


def new_call_id(shards: int) -> str:
    """A new call id on a random one of `shards` shards."""
    return call_id_on(secrets.randbelow(shards))


def call_id_on(shard: int) -> str:
    """A new call id on that shard."""
    return f"{new_id('fc')}{shard:02d}"


def in_sample(trace_id: str, ratio: float) -> bool:
    """Whether a trace that begins here is recorded, if `ratio` of all are: decided by its id, as OpenTelemetry does."""
    return int(trace_id[16:], 16) < ratio * 2**64


def is_sampled(traceparent: str) -> bool:
    """Whether the trace of a W3C header is recorded: the lowest bit of its flags."""
    parts = traceparent.split("-")
    return len(parts) >= 4 and parts[3][-1:] in _ODD_DIGITS


@lru_cache(maxsize=4096)  # the inputs of a map have one call id
def shard_of(call_id: str) -> int:
    """The shard of a call. Raises `InvalidError` if `call_id` is not a call id."""
    return int(check_call_id(call_id)[-2:])


def created_at(call_id: str) -> float:
    """When the id was made, in seconds since 1970, by the clock of its maker."""
    number = 0
    for character in check_call_id(call_id)[3:13]:
        number = number * 32 + _ALPHABET.index(character)
    return number / 1000


def check_call_id(call_id: str) -> str:
    """`call_id` itself. Raises `InvalidError` if it is not one."""
    if not CALL_ID.fullmatch(call_id):
        raise InvalidError(f"{call_id!r} is not a call id", fix="Call ids look like fc-01abc... and come from `spawn`.")
    return call_id


def check_name(name: str, what: str) -> str:
    """`name` itself. Raises `InvalidError` if an object cannot have it."""
    if not NAME.fullmatch(name) or name.startswith("ap-"):
        raise InvalidError(
            f"{what} name {name!r} is not valid",
            fix="Use 1 to 64 letters, digits, dashes, dots and underscores; do not start it with `ap-`.",
        )
    return name


def check_tag(tag: str) -> str:
    """`tag` itself. Raises `InvalidError` if a deployed version cannot have it."""
    if not TAG.fullmatch(tag):
        raise InvalidError(
            f"the tag {tag!r} is not valid", fix="Use 1 to 50 letters, digits, dashes, dots and underscores."
        )
    return tag
