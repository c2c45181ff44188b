"""One write in flight: a single record or an atomic batch, and what its answer means."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from squall_bus.errors import BusError, BusForbidden, BusUnavailable, SubjectTaken, WrongRevision, from_server
from squall_bus.records import Published
from squall_bus.wire import HEADER_START, header_of, publish_command, status_of

if TYPE_CHECKING:
    from squall_bus.lane import Lane, Pending


ATTEMPT_S = 4.0
"""Without an answer for so long, a write is sent again with the same msg id."""


def _answer(headers: bytes, data: bytes) -> dict[str, Any] | None:
    """The PubAck; None when nobody stores this subject at the moment (no stream leader, or no stream)."""
    if status_of(headers) or not data:
        return None
    answer: dict[str, Any] = json.loads(data)
    return answer


class OneRecord:
    """A request about one record, and the clock that runs against it."""

    __slots__ = ("_lane", "_pending", "_reply", "_resend_at")

    def __init__(self, lane: Lane, pending: Pending) -> None:
        self._lane = lane
        self._pending = pending
        self._reply = b""
        self._resend_at = 0.0

    def __len__(self) -> int:
        return 1

    def send(self) -> None:
        link = self._lane.link
        self._reply = link.replies.expect(self)
        self._resend_at = link.loop.time() + ATTEMPT_S
        link.write(self._command())

    def _command(self) -> bytes:
        raise NotImplementedError

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        raise NotImplementedError

    def on_lost(self) -> None:
        self._lane.again(self, [self._pending], answered=False)

    def on_denied(self, subject: bytes, error: BusForbidden) -> bool:
        if subject != self._subject:
            return False
        self._pending.finish(error)
        self._lane.done(self)
        return True

    @property
    def _subject(self) -> bytes:
        return self._pending.subject

    def sweep(self, now: float) -> None:
        if self._pending.deadline <= now:
            self._lane.link.replies.forget(self._reply)
            self._pending.maybe_stored = True
            self._lane.expire(self._pending)
            self._lane.done(self)
        elif self._resend_at <= now:
            self._lane.link.replies.forget(self._reply)
            self._lane.again(self, [self._pending], answered=False)


class SingleWrite(OneRecord):
    """Stores it."""

    __slots__ = ()

    def _command(self) -> bytes:
        pending = self._pending
        head = pending.head + b"\r\n" if pending.head else b""
        return publish_command(pending.subject, self._reply, head, pending.data)

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        lane, pending = self._lane, self._pending
        answer = _answer(headers, data)
        if answer is None:
            lane.again(self, [pending], answered=True)
        elif (error := answer.get("error")) is None:
            lane.link.stats.published += 1
            pending.finish(Published(answer["stream"], answer["seq"], answer.get("duplicate", False)))
            lane.done(self)
        else:
            self._refused(from_server(error, subject=pending.subject.decode(), stream=lane.route.stream))
        return True

    def _refused(self, failure: BusError) -> None:
        lane, pending = self._lane, self._pending
        if isinstance(failure, BusUnavailable):
            lane.again(self, [pending], answered=True)
        elif pending.maybe_stored and isinstance(failure, SubjectTaken | WrongRevision):
            # Possibly by ourselves: an earlier attempt was stored, and the server has forgotten its msg id since.
            lane.check_owner(self, pending, failure)
        else:
            pending.finish(failure)
            lane.done(self)


class OwnerCheck(OneRecord):
    """Its subject holds a record already: reads that one, to see whether it is the same."""

    __slots__ = ("_failure",)

    def __init__(self, lane: Lane, pending: Pending, failure: BusError) -> None:
        super().__init__(lane, pending)
        self._failure = failure

    @property
    def _subject(self) -> bytes:
        # From the leader: another replica may not have it yet.
        return f"$JS.API.STREAM.MSG.GET.{self._lane.route.stream}".encode()

    def _command(self) -> bytes:
        wanted = json.dumps({"last_by_subj": self._pending.subject.decode()}).encode()
        return publish_command(self._subject, self._reply, b"", wanted)

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        lane, pending = self._lane, self._pending
        answer = _answer(headers, data)
        if answer is None:
            lane.again(self, [pending], answered=True)  # no leader now; writing again leads back here
            return True
        found = answer.get("message", {})
        if header_of(b64decode(found.get("hdrs", "")), b"Nats-Msg-Id") == pending.msg_id:
            lane.link.stats.published += 1
            pending.finish(Published(lane.route.stream, found["seq"], duplicate=True))
        else:
            pending.finish(self._failure)
        lane.done(self)
        return True


class BatchWrite:
    """Many records, all or nothing, one ack (ADR-50)."""

    __slots__ = ("_batch_id", "_group", "_lane", "_reply", "_resend_at")

    def __init__(self, lane: Lane, group: list[Pending], batch_id: str) -> None:
        self._lane = lane
        self._group = group
        self._batch_id = batch_id
        self._reply = b""
        self._resend_at = 0.0

    def __len__(self) -> int:
        return len(self._group)

    def send(self) -> None:
        link = self._lane.link
        self._reply = link.replies.expect(self)
        self._resend_at = link.loop.time() + ATTEMPT_S
        link.write(batch_commands(self._group, self._batch_id, self._reply))

    def on_reply(self, headers: bytes, data: bytes) -> bool:
        lane = self._lane
        answer = _answer(headers, data)
        if answer is None:
            lane.again(self, self._group, answered=True)
        elif "error" in answer or answer.get("count") != len(self._group):
            lane.in_parts(self, self._group)
        else:
            first = answer["seq"] - len(self._group) + 1
            lane.link.stats.published += len(self._group)
            for seq, pending in enumerate(self._group, first):
                pending.finish(Published(answer["stream"], seq))
            lane.done(self)
        return True

    def on_lost(self) -> None:
        self._lane.again(self, self._group, answered=False)

    def on_denied(self, subject: bytes, error: BusForbidden) -> bool:
        denied = [pending for pending in self._group if pending.subject == subject]
        for pending in denied:
            pending.finish(error)
        if denied:
            self._lane.in_parts(self, self._group)
        return bool(denied)

    def sweep(self, now: float) -> None:
        for pending in self._group:
            if pending.deadline <= now:
                pending.maybe_stored = True
                self._lane.expire(pending)
        if self._resend_at <= now:
            self._lane.link.replies.forget(self._reply)
            self._lane.again(self, self._group, answered=False)


Write = OneRecord | BatchWrite


def batch_commands(group: Sequence[Pending], batch_id: str, reply: bytes) -> bytes:
    """A whole batch in one piece: one that was half written when the connection broke is dropped by the server.

    Only the last message asks for an answer: an error of an earlier one comes back as an incomplete batch.
    """
    start = b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: " % batch_id.encode()
    last = len(group)
    return b"".join(
        publish_command(
            pending.subject,
            reply if number == last else b"",
            b"%b%b%d\r\n%b" % (pending.head or HEADER_START, start, number, _COMMIT if number == last else _END),
            pending.data,
        )
        for number, pending in enumerate(group, 1)
    )


_END = b"\r\n"
_COMMIT = b"Nats-Batch-Commit: 1\r\n\r\n"
