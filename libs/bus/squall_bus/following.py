"""Following a stream: its messages in order and without gaps, also across reconnects."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from squall_bus.delivery import Delivery
from squall_bus.link import Link
from squall_bus.ordered import Interrupted, OrderedReader, reopen
from squall_bus.records import Range, Stored

QUIET_S = 0.5
"""A pause as long as this in a read that should end is looked into."""


async def follow_range(
    link: Link, wanted: Range, *, follow: bool, idle_timeout_s: float | None
) -> AsyncGenerator[Stored, None]:
    """Ends after what is there now (`follow=False`), or when nothing came for `idle_timeout_s`."""
    next_seq = max(1, wanted.start_seq)
    reader: OrderedReader | None = None
    first = True
    try:
        while True:
            if reader is None:
                reader = await reopen(link, wanted.stream, _config(wanted, next_seq), first=first)
                first = False
                if not follow and reader.initial_pending == 0:
                    return
            try:
                delivery = await reader.next(idle_timeout_s if follow else QUIET_S)
            except Interrupted:
                await reader.close()
                reader = None
                continue
            except TimeoutError:
                # Without `follow` the last message may have been removed before it was delivered.
                if follow or await reader.pending() == 0:
                    return
                continue
            next_seq = delivery.stream_seq + 1
            yield stored_of(delivery)
            if not follow and delivery.pending == 0:
                return
    finally:
        if reader is not None:
            await reader.close()


def _config(wanted: Range, next_seq: int) -> dict[str, Any]:
    return {
        "filter_subject": wanted.filter_subject,
        "headers_only": wanted.headers_only,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": next_seq,
    }


def stored_of(delivery: Delivery) -> Stored:
    return Stored(
        subject=delivery.subject,
        data=delivery.data,
        headers=delivery.headers,
        seq=delivery.stream_seq,
        stored_at=delivery.published_at,
        pending=delivery.pending,
    )
