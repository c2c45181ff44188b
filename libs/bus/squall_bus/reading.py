"""Reading streams by direct get: single messages, many last ones, and ranges in batches."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from squall_bus import js
from squall_bus.errors import BusForbidden, BusUnavailable, NotFound, Refused
from squall_bus.following import follow_range
from squall_bus.link import Link
from squall_bus.records import Message, Range, Stored
from squall_bus.wire import description_of, header_of, parse_headers, status_of, unix_time

PAGE_BYTES = 4 * 1024 * 1024
SUBJECTS_AT_ONCE = 256
TIMEOUT_S = 10.0
_DONE, _NOTHING, _TOO_MANY = 204, 404, 413
_FACTS = frozenset(
    f"Nats-{name}"
    for name in (
        *("Stream", "Subject", "Sequence", "Time-Stamp", "Num-Pending", "Last-Sequence", "UpTo-Sequence"),
        *("Batch-Id", "Batch-Sequence", "Batch-Commit"),
    )
)
"""What the server adds; not the publisher's headers."""


async def get_last(link: Link, stream: str, subject: str, from_leader: bool = False) -> Stored | None:
    if from_leader:
        return await _get_from_leader(link, stream, subject)
    message = await js.ask(link, f"$JS.API.DIRECT.GET.{stream}.{subject}")
    status = status_of(message.raw_headers)
    if status == _NOTHING:
        return None
    if status:
        raise Refused(f"{description_of(message.raw_headers)} ({status})", stream=stream, subject=subject)
    return _stored(message)


async def _get_from_leader(link: Link, stream: str, subject: str) -> Stored | None:
    try:
        answer = await js.api(link, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    except NotFound as error:
        if error.data.get("server_code") == 10037:
            return None
        raise
    found: dict[str, Any] = answer["message"]
    return Stored(
        subject=found["subject"],
        data=b64decode(found.get("data", "")),
        headers=parse_headers(b64decode(found.get("hdrs", ""))),
        seq=found["seq"],
        stored_at=unix_time(found["time"]),
    )


async def get_many(link: Link, stream: str, subjects: Sequence[str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for first in range(0, len(subjects), SUBJECTS_AT_ONCE):
        wanted = list(subjects[first : first + SUBJECTS_AT_ONCE])
        status, messages = await _ask_many(link, stream, {"multi_last": wanted})
        if status == _TOO_MANY:  # the server gives at most 1,024 subjects at once
            messages = []
            for subject in wanted:
                async for stored in read_range(link, Range(stream, subject)):
                    found[stored.subject] = stored
        for message in messages:
            stored = _stored(message)
            found[stored.subject] = stored
    return found


def read(
    link: Link, wanted: Range, *, follow: bool = False, idle_timeout_s: float | None = None
) -> AsyncIterator[Stored]:
    if follow or wanted.headers_only:
        return follow_range(link, wanted, follow=follow, idle_timeout_s=idle_timeout_s)
    return read_range(link, wanted)


async def read_range(link: Link, wanted: Range) -> AsyncGenerator[Stored, None]:
    """What is there now, page by page; no consumer is made."""
    seq = max(1, wanted.start_seq)
    while True:
        body = {"seq": seq, "next_by_subj": wanted.filter_subject, "batch": wanted.page, "max_bytes": PAGE_BYTES}
        _, messages = await _ask_many(link, wanted.stream, body)
        for message in messages:
            stored = _stored(message)
            yield stored
            seq = stored.seq + 1
            if stored.pending == 0:
                return
        if not messages:
            return


async def _ask_many(link: Link, stream: str, body: dict[str, Any]) -> tuple[int, list[Message]]:
    """All replies to one direct get, and the status that ended them. Asked again after a lost connection."""
    until = link.loop.time() + TIMEOUT_S
    while True:
        await link.wait_connected(max(0.0, until - link.loop.time()))
        subject = f"$JS.API.DIRECT.GET.{stream}"
        collector = _Collector(link, subject, until)
        reply = link.ask_many(subject, json.dumps(body).encode(), collector)
        try:
            status, messages = await collector.result()
        except BusUnavailable:
            if link.loop.time() >= until:
                raise
        else:
            if status in (_DONE, _NOTHING, _TOO_MANY):
                return status, messages
            if status != 503 or link.loop.time() >= until:
                raise Refused(f"direct get of {stream} was refused ({status})", stream=stream)
        finally:
            link.replies.forget(reply)
        await asyncio.sleep(js.FIRST_PAUSE_S)


class _Collector:
    """Takes replies until the status that ends them."""

    def __init__(self, link: Link, subject: str, until: float) -> None:
        self._subject = subject.encode()
        self._messages: list[Message] = []
        self._future: asyncio.Future[int] = link.loop.create_future()
        self._timer = link.loop.call_at(until, self._fail, "the server did not finish its answer in time")

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        status = status_of(headers)
        if not status:
            self._messages.append(Message("", "", data, headers))
            return False
        if not self._future.done():
            self._future.set_result(status)
        return True

    def on_lost(self) -> None:
        self._fail("the connection was lost before the answer was complete")

    def on_denied(self, subject: bytes, error: BusForbidden) -> bool:
        if subject != self._subject:
            return False
        if not self._future.done():
            self._future.set_exception(error)
        return True

    def _fail(self, why: str) -> None:
        if not self._future.done():
            self._future.set_exception(BusUnavailable(why))

    async def result(self) -> tuple[int, list[Message]]:
        try:
            return await self._future, self._messages
        finally:
            self._timer.cancel()


def _stored(message: Message) -> Stored:
    headers = parse_headers(message.raw_headers)
    pending = header_of(message.raw_headers, b"Nats-Num-Pending")
    return Stored(
        subject=headers["Nats-Subject"],
        data=message.data,
        seq=int(headers["Nats-Sequence"]),
        stored_at=unix_time(headers["Nats-Time-Stamp"]),
        pending=int(pending) if pending else 0,
        headers={name: value for name, value in headers.items() if name not in _FACTS},
    )
