"""One delivered message: what it says, and the one answer it gets."""

from __future__ import annotations

import logging

from squall_bus import js
from squall_bus.consume import event
from squall_bus.errors import BusUnavailable
from squall_bus.link import Link
from squall_bus.wire import header_of, parse_headers


class Delivery:
    """One message that is ours until it is answered or its ack wait runs out. Parsed when looked at."""

    __slots__ = ("_ack_subject", "_answered", "_link", "_numbers", "_raw_headers", "_subject", "data")

    def __init__(self, link: Link, subject: bytes, ack_subject: bytes, headers: bytes, data: bytes) -> None:
        self.data = data
        self._link = link
        self._subject = subject
        self._ack_subject = ack_subject
        self._raw_headers = headers
        self._numbers: list[bytes] | None = None
        self._answered = False

    # ------------------------------------------------------------------ what it says

    @property
    def subject(self) -> str:
        return self._subject.decode()

    @property
    def headers(self) -> dict[str, str]:
        """All headers, parsed at each call; `header()` reads one without parsing the others."""
        return parse_headers(self._raw_headers)

    def header(self, name: str) -> str | None:
        value = header_of(self._raw_headers, name.encode())
        return None if value is None else value.decode("utf-8", "replace")

    def _number(self, place: int) -> int:
        # $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<seq>.<seq>.<time>.<pending>[.<random>]
        numbers = self._numbers
        if numbers is None:
            tokens = self._ack_subject.split(b".")
            first = 4 if len(tokens) == 9 else 6
            numbers = self._numbers = tokens[first : first + 5]
        return int(numbers[place])

    @property
    def num_delivered(self) -> int:
        """1 at the first delivery."""
        return self._number(0)

    @property
    def stream_seq(self) -> int:
        return self._number(1)

    @property
    def consumer_seq(self) -> int:
        return self._number(2)

    @property
    def published_at(self) -> float:
        """Unix seconds, the server's clock."""
        return self._number(3) / js.NS

    @property
    def pending(self) -> int:
        """Matching messages behind this one."""
        return self._number(4)

    # ------------------------------------------------------------------ answers, one at most

    @property
    def answered(self) -> bool:
        return self._answered

    def ack(self) -> None:
        """Done. Lost acks lead to a redelivery."""
        self._answer(b"+ACK")

    def nak(self, delay_s: float = 0) -> None:
        """Give it back, at once or after a delay."""
        self._answer(b'-NAK {"delay": %d}' % js.nanoseconds(delay_s) if delay_s > 0 else b"-NAK")

    def term(self) -> None:
        """Never deliver it again."""
        self._answer(b"+TERM")

    async def ack_confirmed(self, timeout_s: float = 2.0) -> bool:
        """Ack, and tell whether the server has it."""
        return self._first_answer(b"+ACK") and await self._confirmed(b"+ACK", timeout_s)

    async def in_progress(self, timeout_s: float = 2.0) -> bool:
        """Ask for another ack wait. True only if the server confirmed it in time.

        That says that the server is there and the consumer exists, not that the message is still ours: 2.15 confirms
        it for redelivered and for acked messages too. Who was stale once stays stale.
        """
        if self._answered:
            return False
        return await self._confirmed(b"+WPI", timeout_s)

    async def _confirmed(self, answer: bytes, timeout_s: float) -> bool:
        try:
            await js.ask(self._link, self._ack_subject.decode(), answer, timeout_s)
        except BusUnavailable:
            return False
        return True

    def _answer(self, answer: bytes) -> None:
        if self._first_answer(answer):
            self._link.send_raw(self._ack_subject, answer)

    def _first_answer(self, answer: bytes) -> bool:
        if self._answered:
            event(logging.WARNING, "bus_delivery_answered_twice", subject=self.subject, answer=answer.decode())
            return False
        self._answered = True
        return True
