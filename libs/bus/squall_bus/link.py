"""One connection to the bus server: its state, its replies, its plain messages. Knows nothing of streams."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import ssl
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from nats.errors import Error as NatsError

from squall_bus.client import Deliver, RawClient, Sink
from squall_bus.consume import event, run_callback
from squall_bus.errors import BusForbidden, BusUnavailable
from squall_bus.records import BusStats, Headers, Message
from squall_bus.replies import OneReply, Replies, Waiter
from squall_bus.settings import (
    MAX_BUFFERED_BYTES,
    MAX_UNANSWERED_PINGS,
    PING_INTERVAL_S,
    RECONNECT_WAIT_S,
    BusSettings,
)
from squall_bus.wire import BadMessage, header_block, publish_command, status_of, subject_bytes
from squall_contracts.roles import PUBLIC_INBOX

DENIAL_LOGGED_EVERY_S = 10.0
"""Of one kind: a hot path that is denied must not drown everything else."""
_NO_RESPONDERS = 503
_DENIAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)
_VERBS = {"publish": "publish to", "subscription": "subscribe to"}


class Link:
    """Connects, stays connected, sends, and matches replies to requests."""

    def __init__(self, settings: BusSettings, tasks: asyncio.TaskGroup, pause_s: float = 0) -> None:
        """`pause_s`: how long the socket is left alone after each read; what comes is heard later, in bunches."""
        self.settings = settings
        self._tasks = tasks
        self._workers: set[asyncio.Task[None]] = set()
        self.stats = BusStats()
        self.loop = asyncio.get_running_loop()
        self.connected = False
        self.connected_at = 0.0
        self._client = RawClient(self._on_lost, self._on_denied, pause_s)
        self._inbox = f"{settings.inbox_prefix}.{secrets.token_hex(8)}"
        self._inboxes = 0
        self.replies = Replies(f"{self._inbox}.r")
        self._denied_subscriptions: dict[str, BusForbidden] = {}
        self._denials: dict[str, float] = {}
        """When a kind of denial was last logged."""
        self._reconnect_callbacks: dict[object, Callable[[], None]] = {}
        self._disconnect_callbacks: dict[object, Callable[[], None]] = {}
        self._connected_event = asyncio.Event()
        self._closing = False

    # ------------------------------------------------------------------ life

    async def open(self) -> None:
        """Connect, trying again until `connect_timeout_s` is over."""
        settings = self.settings
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                await self._connect()
        except (TimeoutError, NatsError, OSError) as error:
            why = self._client.last_error or error
            await self.close()
            raise BusUnavailable(
                f"cannot connect to the bus at {settings.address}: {why}", url=settings.address
            ) from error
        self._client.open_sink(self.replies.prefix + ".*", self.replies.deliver)
        self._connection_made()

    async def _connect(self) -> None:
        settings = self.settings
        await self._client.connect(
            servers=settings.url.split(","),
            name=settings.name,
            user=settings.user,
            password=settings.password,
            tls=_tls_context(settings),
            error_cb=self._on_error,
            reconnected_cb=self._on_reconnected,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it sleeps; fractions are fine
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=MAX_UNANSWERED_PINGS,
            flusher_queue_size=1024,
            pending_size=MAX_BUFFERED_BYTES,
        )

    async def close(self) -> None:
        """Close the socket; everybody who still waits for a reply is told."""
        self._closing = True
        self.connected = False
        self._connected_event.set()
        for worker in self._workers:
            worker.cancel()
        try:
            await self._client.close()
        except (OSError, NatsError) as error:  # a dead connection may raise ConnectionResetError here
            event(logging.DEBUG, "bus_close_failed", error=str(error))
        self.replies.lose_all()

    def _connection_made(self) -> None:
        self.connected = True
        # The bus lies below squall_service.clock; compared with the server's publish times, hence wall time.
        self.connected_at = datetime.now(UTC).timestamp()
        self._connected_event.set()

    def _on_lost(self, error: Exception) -> None:
        if self._closing:
            return
        self.connected = False
        self._connected_event.clear()
        event(logging.WARNING, "bus_disconnected", url=self.settings.address, error=repr(error))
        self.replies.lose_all()
        for callback in list(self._disconnect_callbacks.values()):
            run_callback(lambda _: callback(), None, self.stats)  # noqa: B023  # called at once

    async def _on_reconnected(self) -> None:
        self.stats.reconnects += 1
        self._connection_made()
        event(logging.WARNING, "bus_reconnected", url=self.settings.address)
        for callback in list(self._reconnect_callbacks.values()):
            run_callback(lambda _: callback(), None, self.stats)  # noqa: B023  # called at once

    async def _on_error(self, error: Exception) -> None:
        if self._closing or not self._client.is_connected:
            event(logging.DEBUG, "bus_connect_failed", url=self.settings.address, error=repr(error))
            return
        event(logging.ERROR, "bus_error", url=self.settings.address, error=repr(error))

    def _on_denied(self, text: str) -> None:
        """The server says so once, and answers nothing: whoever waits is told here, and the log says it loudly."""
        self.stats.denied += 1
        found = _DENIAL.match(text)
        verb, subject = (found[1].lower(), found[2]) if found else ("publish", "")
        user = self.settings.user or "(none)"
        error = BusForbidden(
            f"the bus user {user} may not {_VERBS[verb]} {subject or text}", user=user, subject=subject
        )
        if verb == "publish":
            self.replies.deny(subject.encode(), error)
        else:
            self._denied_subscriptions[subject] = error
        kind = f"{verb} {'.'.join(subject.split('.')[:4])}"
        if self.loop.time() >= self._denials.get(kind, 0.0):
            self._denials[kind] = self.loop.time() + DENIAL_LOGGED_EVERY_S
            event(
                logging.ERROR,
                error.code,
                user=user,
                denied=_VERBS[verb],
                subject=subject,
                reason=text,
                fix=error.hint,
                so_far=self.stats.denied,
            )

    def denied_subscription(self, subject: str) -> BusForbidden | None:
        """Why the last subscription to `subject` will never get anything."""
        return self._denied_subscriptions.pop(subject, None)

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        return _register(self._reconnect_callbacks, callback)

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        return _register(self._disconnect_callbacks, callback)

    async def wait_connected(self, timeout_s: float) -> None:
        """Return when connected; BusUnavailable when that takes too long or the bus is closed."""
        if not self.connected and not self._closing:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._connected_event.wait()
            except TimeoutError:
                pass
        if not self.connected:
            raise BusUnavailable("the bus is not connected", url=self.settings.address)

    # ------------------------------------------------------------------ facts

    @property
    def server_version(self) -> tuple[int, int, int]:
        numbers = re.findall(r"\d+", str(self._client.info.get("version", "")))[:3]
        major, minor, patch = (*map(int, numbers), 0, 0, 0)[:3]
        return major, minor, patch

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    @property
    def congested(self) -> bool:
        """The server does not read as fast as we write."""
        return self._client.congested

    def new_inbox(self, kind: str = PUBLIC_INBOX) -> str:
        """Others may be allowed to publish to public ones; those of pulls and requests are only the server's."""
        self._inboxes += 1
        return f"{self._inbox}.{kind}.{self._inboxes}"

    # ------------------------------------------------------------------ subscriptions

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task of the connection's group; cancelled when the connection is closed."""
        task = self._tasks.create_task(work, name=name)
        self._workers.add(task)
        task.add_done_callback(self._workers.discard)
        return task

    def open_sink(self, subject: str, deliver: Deliver, queue: str = "") -> Sink:
        return self._client.open_sink(subject, deliver, queue)

    async def close_sink(self, sink: Sink) -> None:
        """Unsubscribe, and return when nothing can arrive any more."""
        self._client.stop_sink(sink)
        await self.flushed(1.0)
        self._client.drop_sink(sink)

    def drop_sink(self, sink: Sink) -> None:
        """Unsubscribe without waiting."""
        self._client.stop_sink(sink)
        self._client.drop_sink(sink)

    async def flushed(self, timeout_s: float) -> bool:
        """A round trip: everything written before it has reached the server."""
        if not self.connected:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.ping()
        except TimeoutError:
            return False

    # ------------------------------------------------------------------ out

    def write_publish(self, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        """For callers that repeat what was lost: only while connected."""
        self._client.write(publish_command(subject, reply, headers, data))

    def write(self, command: bytes) -> None:
        """One or more complete commands, in one piece."""
        self._client.write(command)

    def send(self, subject: str, data: bytes, headers: Headers | None = None, reply: str = "") -> None:
        block = header_block(headers)
        self._check_size(len(block) + len(data))
        if self.congested:
            self.stats.sent_dropped += 1
            return
        self._client.write(publish_command(subject_bytes(subject), reply.encode(), block, data))

    def send_raw(self, subject: bytes, data: bytes) -> None:
        """For answers to subjects that the server itself made."""
        if self.congested:
            self.stats.sent_dropped += 1
            return
        self._client.write(b"PUB %b %d\r\n%b\r\n" % (subject, len(data), data))

    def _check_size(self, size: int) -> None:
        # The server closes the connection of who sends more, with everything in flight on it.
        if size > self.max_payload:
            raise BadMessage(f"message of {size} bytes; the server takes {self.max_payload}")

    async def request(
        self, subject: str, data: bytes, *, headers: Headers | None = None, timeout_s: float = 5.0
    ) -> Message:
        """At most once: never sent a second time."""
        started = self.loop.time()
        if not self.connected:
            await self.wait_connected(timeout_s)
        block = header_block(headers)
        self._check_size(len(block) + len(data))
        message = await self._ask(
            subject_bytes(subject), data, block, max(0.0, timeout_s - (self.loop.time() - started))
        )
        if status_of(message.raw_headers) == _NO_RESPONDERS and not message.data:
            raise BusUnavailable(f"nobody answers on {subject}", subject=subject)
        message.subject = subject
        return message

    async def _ask(self, subject: bytes, data: bytes, headers: bytes, timeout_s: float) -> Message:
        waiter = OneReply(self.loop, subject, timeout_s)
        reply = self.replies.expect(waiter)
        self.write_publish(subject, reply, headers, data)
        try:
            return await waiter.result()
        finally:
            self.replies.forget(reply)

    def ask_many(self, subject: str, data: bytes, waiter: Waiter) -> bytes:
        """A request with several replies; the caller forgets the returned subject when it has enough."""
        reply = self.replies.expect(waiter)
        self.write_publish(subject_bytes(subject), reply, b"", data)
        return reply


def _register(callbacks: dict[object, Callable[[], None]], callback: Callable[[], None]) -> Callable[[], None]:
    key = object()
    callbacks[key] = callback

    def stop() -> None:
        callbacks.pop(key, None)

    return stop


def _tls_context(settings: BusSettings) -> ssl.SSLContext | None:
    if settings.tls_ca is None:
        return None
    context = ssl.create_default_context(cafile=settings.tls_ca)
    if settings.tls_cert is not None:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context
