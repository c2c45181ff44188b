"""Typed messages and trace context on the bus: the body is the message's own msgpack, the trace is a header."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TypeVar

from squall_contracts.envelope import Message as TypedMessage

TRACEPARENT = "traceparent"
T = TypeVar("T", bound=TypedMessage)


def encode(message: TypedMessage) -> bytes:
    """The body of a typed message."""
    return message.encode()


def decode(cls: type[T], data: bytes) -> T:
    """The message of class `cls` in `data`; squall_contracts.envelope.BadMessage when it is something else."""
    return cls.decode(data)


def inject(headers: MutableMapping[str, str], traceparent: str | None) -> None:
    """Put the caller's trace context into the headers of a message."""
    if traceparent:
        headers[TRACEPARENT] = traceparent


def extract(headers: Mapping[str, str]) -> str | None:
    """The sender's trace context, if the message has one."""
    return headers.get(TRACEPARENT) or None
