"""NATS bytes: builds commands and header blocks, picks headers apart. No I/O, no state.

nats-py's own header code costs 17 % of the delivery rate with 4 headers; here nothing is parsed before it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime

from squall_bus.errors import BusError

HEADER_START = b"NATS/1.0\r\n"
_STATUS_START = b"NATS/1.0 "
_NOT_IN_SUBJECTS = re.compile(r"[\s]")


class BadMessage(BusError):
    """A subject or header that would break the protocol."""

    code = "bus_bad_message"
    fix = "Subjects have no blanks; header names and values have no line breaks."


def subject_bytes(subject: str) -> bytes:
    """Checked, because a blank or line break in a subject would be read as another command."""
    if not subject or _NOT_IN_SUBJECTS.search(subject):
        raise BadMessage(f"not a subject: {subject!r}")
    return subject.encode()


def header_lines(headers: Mapping[str, str]) -> bytes:
    """`Name: value` lines without start and end."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise BadMessage("a header contains a line break")
    return text.encode()


def header_block(headers: Mapping[str, str] | None) -> bytes:
    """A complete block, or nothing."""
    if not headers:
        return b""
    return b"%b%b\r\n" % (HEADER_START, header_lines(headers))


def publish_command(subject: bytes, reply: bytes, headers: bytes, data: bytes) -> bytes:
    """PUB or HPUB, ready to be written."""
    if headers:
        size = len(headers)
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, size, size + len(data), headers, data)
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(data), data)


def ttl_text(ttl_s: float) -> str:
    """Whole seconds, rounded up: the server refuses less than one, and nats-py would cut off the rest."""
    return f"{max(1, math.ceil(ttl_s))}s"


def parse_headers(raw: bytes) -> dict[str, str]:
    """All headers of a block; the status line is not one of them."""
    found: dict[str, str] = {}
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found[name.decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return found


def header_of(raw: bytes, name: bytes) -> bytes | None:
    """One header, without parsing the others."""
    start = raw.find(b"\r\n%b:" % name)
    if start < 0:
        return None
    start += len(name) + 3
    return raw[start : raw.find(b"\r\n", start)].strip()


def status_of(raw: bytes) -> int:
    """The status code of a header block; 0 for an ordinary message."""
    return int(raw[9:12]) if raw.startswith(_STATUS_START) and raw[9:12].isdigit() else 0


def description_of(raw: bytes) -> str:
    """The text behind the status code."""
    return raw[12 : raw.find(b"\r\n")].strip().decode("utf-8", "replace")


def unix_time(rfc3339: str) -> float:
    """`2026-08-21T14:50:11.123456789Z` as unix seconds; nanoseconds are cut to what a float holds."""
    whole, _, rest = rfc3339.rstrip("Z").partition(".")
    seconds = datetime.fromisoformat(whole + "+00:00").timestamp()
    return seconds + (float("0." + rest) if rest else 0.0)
