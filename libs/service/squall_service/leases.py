"""Leader leases: at most one holder of a name at a time, by compare-and-set in the bucket `leases`.

The holder stops leading before its lease can expire on the server, by its own monotonic clock; a process that was
paused may still notice late, so what a leader writes should carry `Leadership.epoch` or be a CAS itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from squall_bus import Bus, BusError, KeyExists
from squall_service.clock import Clock, SystemClock
from squall_service.logs import log

BUCKET = "leases"
TTL_S = 8.0
"""Not above the bucket's own TTL (10 s)."""
RENEWALS = 4
"""Tries per TTL: two lost ones must not cost the leadership."""
SAFETY = 0.75
"""Share of the TTL after which a holder without a confirmed renewal stops."""


class Leadership:
    """One term of one holder."""

    def __init__(self, epoch: int, clock: Clock, held_until: float) -> None:
        self.epoch = epoch
        """Grows with every term: the revision of the record that began it."""
        self.held_until = held_until
        self._clock = clock

    def holds(self) -> bool:
        """False once the lease may have expired."""
        return self._clock.monotonic() < self.held_until


class LeaderLease:
    """`await LeaderLease(bus, "autoscaler", "as-1").run(lead)`"""

    def __init__(self, bus: Bus, name: str, holder: str, ttl_s: float = TTL_S, *, clock: Clock | None = None) -> None:
        self._kv = bus.kv(BUCKET)
        self._name = name
        self._value = holder.encode()
        self._ttl_s = ttl_s
        self._clock = clock or SystemClock()
        self._revision = 0
        self.leading = False

    async def holder(self) -> str | None:
        """Who holds it now."""
        entry = await self._kv.get(self._name)
        return None if entry is None else entry.value.decode()

    async def run(self, on_leading: Callable[[Leadership], Awaitable[None]]) -> None:
        """Wait for the lease, run `on_leading` while it is held, and so on; `on_leading` is cancelled when it is lost.

        Returns when `on_leading` returns within its term. Cancel it to stop; the lease is then given back.
        """
        while True:
            leadership = await self._acquire()
            if leadership is None:
                await self._clock.sleep(self._ttl_s / RENEWALS)
            elif await self._lead(leadership, on_leading):
                return

    async def _acquire(self) -> Leadership | None:
        asked = self._clock.monotonic()
        try:
            self._revision = await self._kv.create(self._name, self._value, ttl_s=self._ttl_s)
        except asyncio.CancelledError:
            await self._withdraw()
            raise
        except KeyExists:
            return None
        except BusError as error:
            if not error.retryable:
                raise
            return None
        return Leadership(self._revision, self._clock, asked + self._ttl_s * SAFETY)

    async def _withdraw(self) -> None:
        """Stopped while asking: it may have been given to us. Asking once more is answered after that."""
        try:
            async with asyncio.timeout(self._ttl_s / RENEWALS):
                try:
                    revision = await self._kv.create(self._name, self._value, ttl_s=self._ttl_s)
                except KeyExists:
                    entry = await self._kv.get(self._name, from_leader=True)
                    if entry is None or entry.value != self._value:
                        return
                    revision = entry.revision
                await self._kv.delete(self._name, revision=revision)
        except (BusError, TimeoutError):
            pass  # it expires by itself

    async def _lead(self, leadership: Leadership, on_leading: Callable[[Leadership], Awaitable[None]]) -> bool:
        """True when `on_leading` came to its end, False when the lease was lost."""
        log.info("lease_taken", lease=self._name, holder=self._value.decode(), epoch=leadership.epoch)
        self.leading = True
        finished = False

        async def work() -> None:
            nonlocal finished
            await on_leading(leadership)
            # A holder that was paused may find that its term is over before the renewal does; it must lead again.
            finished = leadership.holds()
            renewing.cancel()

        try:
            async with asyncio.TaskGroup() as tasks:
                renewing = tasks.create_task(self._renew(leadership))
                working = tasks.create_task(work())
                renewing.add_done_callback(lambda _: working.cancel())
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        finally:
            self.leading = False
            await self._release(leadership)
        return finished

    async def _renew(self, leadership: Leadership) -> None:
        """Returns when the lease is lost."""
        while leadership.holds():
            await self._clock.sleep(self._ttl_s / RENEWALS)
            asked = self._clock.monotonic()
            try:
                async with asyncio.timeout(max(0.0, leadership.held_until - asked)):
                    self._revision = await self._kv.update(self._name, self._value, self._revision, ttl_s=self._ttl_s)
            except (BusError, TimeoutError) as error:
                log.warning("lease_lost", lease=self._name, holder=self._value.decode(), reason=repr(error))
                return
            leadership.held_until = asked + self._ttl_s * SAFETY

    async def _release(self, leadership: Leadership) -> None:
        """Give it back, so that the next holder need not wait; only if it is still ours."""
        if not leadership.holds():
            return
        try:
            async with asyncio.timeout(self._ttl_s / RENEWALS):
                await self._kv.delete(self._name, revision=self._revision)
        except (BusError, TimeoutError):
            pass  # it expires by itself
