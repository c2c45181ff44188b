"""What exists: apps, function versions, pools. A view of the buckets `apps` and `specs`; decides and writes nothing.

Apps and pools are watched. Function versions never change, so they are read once and kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from squall.errors import InvalidError, NotFoundError
from squall.ids import check_name
from squall_bus import Bus, Change, Entry
from squall_contracts.functions import APPS, SPECS, AppRecord, FunctionRecord, PoolRecord, app_name_key, pool_key
from squall_gateway.web.names import WebNames
from squall_service.telemetry import log

MAX_FUNCTIONS = 10_000
"""Function versions kept in memory, about 4 KiB each."""
_POOL_PREFIX = pool_key("")
_NAME_PREFIX = "name."


@dataclass(frozen=True, slots=True)
class KnownApp:
    """An app as of a revision of its record."""

    record: AppRecord
    revision: int


class Directory:
    """Look-ups are answered from memory, or by one read when memory does not have it yet."""

    def __init__(self, bus: Bus) -> None:
        self._apps_bucket = bus.kv(APPS)
        self._specs = bus.kv(SPECS)
        self._apps: dict[str, KnownApp] = {}
        self._functions: OrderedDict[str, FunctionRecord] = OrderedDict()
        self.web = WebNames()
        """Names of web functions of all apps."""
        self._pools: dict[str, PoolRecord] = {}
        self._pools_of_app: dict[str, set[str]] = {}
        self._synced = {APPS: asyncio.Event(), SPECS: asyncio.Event()}

    async def run(self) -> None:
        """Follow both buckets until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_apps())
            tasks.create_task(self._follow_pools())

    async def synced(self) -> None:
        """Returns when everything that was there at the start is known."""
        for event in self._synced.values():
            await event.wait()

    async def _follow_apps(self) -> None:
        async with self._apps_bucket.watch() as changes:
            async for change in changes:
                if change.synced:
                    self._synced[APPS].set()
                elif not change.key.startswith(_NAME_PREFIX):
                    understood(change, self._on_app)

    async def _follow_pools(self) -> None:
        async with self._specs.watch(_POOL_PREFIX) as changes:
            async for change in changes:
                if change.synced:
                    self._synced[SPECS].set()
                else:
                    understood(change, self._on_pool)

    def _on_app(self, change: Change) -> None:
        if change.value is None:
            self._apps.pop(change.key, None)
            self.web.gone(change.key)
        else:
            self.saw_app(AppRecord.decode(change.value), change.revision)

    def _on_pool(self, change: Change) -> None:
        pool = change.key.removeprefix(_POOL_PREFIX)
        if change.value is not None:
            self.saw_pool(PoolRecord.decode(change.value))
        elif (gone := self._pools.pop(pool, None)) is not None:
            left = self._pools_of_app[gone.app_id]
            left.discard(pool)
            if not left:
                del self._pools_of_app[gone.app_id]

    # ------------------------------------------------------------------ apps

    def saw_app(self, record: AppRecord, revision: int) -> KnownApp:
        """Take in a record that was just read or written; an older one than the known one changes nothing."""
        known = self._apps.get(record.app_id)
        if known is None or known.revision < revision:
            known = self._apps[record.app_id] = KnownApp(record, revision)
            self.web.saw(record)
        return known

    def known_app(self, app_id: str) -> KnownApp | None:
        """The app if it is in memory."""
        return self._apps.get(app_id)

    async def app(self, app_id: str, workspace: str, *, fresh: bool = False) -> KnownApp:
        """The app of that id. Raises `NotFoundError`, also for an app of another workspace."""
        known = None if fresh else self._apps.get(app_id)
        if known is None:
            entry = await self._app_entry(app_id)
            known = None if entry is None else self.saw_app(AppRecord.decode(entry.value), entry.revision)
        if known is None or known.record.workspace != workspace:
            raise NotFoundError(f"there is no app {app_id}")
        return known

    async def _app_entry(self, app_id: str) -> Entry | None:
        # The id becomes a key, hence a subject: what cannot be an id is not looked up.
        return await self._apps_bucket.get(app_id) if is_app_id(app_id) else None

    async def named_app(self, workspace: str, environment: str, name: str) -> KnownApp:
        """The deployed app of that name. Raises `NotFoundError`, `InvalidError`."""
        check_name(environment, "environment")  # it becomes a part of a key
        pointer = await self._apps_bucket.get(app_name_key(workspace, environment, name))
        if pointer is None:
            raise NotFoundError(f"there is no deployed app {name!r} in environment {environment!r}")
        return await self.app(pointer.value.decode(), workspace)

    async def find_app(self, app: str, workspace: str, environment: str) -> KnownApp:
        """An app by id or by name."""
        if is_app_id(app):
            return await self.app(app, workspace)
        return await self.named_app(workspace, environment, app)

    def apps(self) -> list[KnownApp]:
        """Every app in memory."""
        return list(self._apps.values())

    # ------------------------------------------------------------------ functions and pools

    def saw_function(self, record: FunctionRecord) -> FunctionRecord:
        """Take in a record that was just written."""
        self._functions[record.function_id] = record
        self._functions.move_to_end(record.function_id)
        if len(self._functions) > MAX_FUNCTIONS:
            self._functions.popitem(last=False)
        return record

    def known_function(self, function_id: str) -> FunctionRecord | None:
        """The version if it is in memory."""
        return self._functions.get(function_id)

    async def function(self, function_id: str, workspace: str) -> FunctionRecord:
        """The version of that id. Raises `NotFoundError`, also for one of another workspace."""
        record = self._functions.get(function_id)
        if record is None and is_function_id(function_id):
            entry = await self._specs.get(function_id)
            record = None if entry is None else self.saw_function(FunctionRecord.decode(entry.value))
        if record is None or record.workspace != workspace:
            raise NotFoundError(f"there is no function {function_id}")
        return record

    async def function_name(self, function_id: str, workspace: str) -> str:
        """What its declaration calls it; the id itself if it is not there (any more)."""
        try:
            return (await self.function(function_id, workspace)).spec.name
        except NotFoundError:
            return function_id

    def saw_pool(self, record: PoolRecord) -> None:
        """Take in a record that was just written."""
        self._pools[record.pool] = record
        self._pools_of_app.setdefault(record.app_id, set()).add(record.pool)

    def pool(self, pool: str) -> PoolRecord | None:
        """The pool if it exists."""
        return self._pools.get(pool)

    def pools_of(self, app_id: str) -> list[PoolRecord]:
        """Every pool that the app has or had and that was not removed yet."""
        return [self._pools[pool] for pool in sorted(self._pools_of_app.get(app_id, ()))]

    async def pools_of_now(self, app_id: str) -> list[PoolRecord]:
        """The same, read from the bucket: what another gateway wrote a moment ago counts too."""
        for entry in await self._specs.entries(_POOL_PREFIX):
            self.saw_pool(PoolRecord.decode(entry.value))
        return self.pools_of(app_id)


def understood(change: Change, on_change: Callable[[Change], None]) -> None:
    """Take in a change. One that nobody here understands (a newer service's) must not end the view of all others."""
    try:
        on_change(change)
    except InvalidError as error:
        log.warning("change_not_understood", key=change.key, reason=error.message)


def is_app_id(text: str) -> bool:
    """Whether it can be the id of an app (names cannot start with `ap-`)."""
    return text.startswith("ap-") and text.replace("-", "").isalnum() and text.isascii()


def is_function_id(text: str) -> bool:
    """Whether it can be the id of a function version."""
    return text.startswith("fu-") and text.replace("-", "").isalnum() and text.isascii()
