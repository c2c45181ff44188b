"""Named objects: dicts and queues by name and by id. Owns the bucket `objects`; knows nothing of their contents."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from squall.errors import AlreadyExistsError, NotFoundError
from squall.http_api.storage import ObjectInfo
from squall.ids import check_name, new_id
from squall.spec import FunctionSpec
from squall_bus import Bus, KeyExists
from squall_contracts.objects import OBJECTS, PREFIXES, ObjectRecord, object_id_key, object_name_key, objects_of
from squall_service.clock import Clock

EPHEMERAL_S = 300.0
"""How long an object without a name outlives its last renewal."""
KNOWN_S = 3.0
"""A deleted object may be found by its id for so long."""
MAX_KNOWN = 10_000
_ID = re.compile(r"[a-z]{2}-[0-9a-z]+")

Clear = Callable[[str, str], Awaitable[object]]
"""Removes what is in an object: gets the workspace and its id."""


class Objects:
    """Makes, finds and removes objects."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bucket = bus.kv(OBJECTS)
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], tuple[float, ObjectRecord]] = OrderedDict()
        self.clears: dict[str, Clear] = {}
        """By kind."""

    async def create(self, kind: str, name: str, environment: str, workspace: str, *, ephemeral: bool) -> ObjectInfo:
        """Make one. Raises `AlreadyExistsError`, `InvalidError`."""
        check_name(environment, "environment")
        if not ephemeral:
            check_name(name, kind[:-1])
        record = ObjectRecord(
            object_id=new_id(PREFIXES[kind]),
            kind=kind,
            name="" if ephemeral else name,
            workspace=workspace,
            environment=environment,
            created_at=self._clock.now(),
        )
        by_id = object_id_key(workspace, record.object_id)
        await self._bucket.put(by_id, record.encode(), EPHEMERAL_S if ephemeral else None)
        if not ephemeral:
            try:
                await self._bucket.create(object_name_key(workspace, environment, kind, name), record.encode())
            except KeyExists:
                await self._bucket.delete(by_id)
                raise AlreadyExistsError(f"{kind[:-1]} {name!r} is there", fix="Look it up by its name.") from None
        return info_of(record)

    async def named(self, kind: str, name: str, environment: str, workspace: str) -> ObjectInfo:
        """One by its name. Raises `NotFoundError`."""
        return info_of(await self._named(kind, name, environment, workspace))

    async def _named(self, kind: str, name: str, environment: str, workspace: str) -> ObjectRecord:
        check_name(environment, "environment")
        key = object_name_key(workspace, environment, kind, check_name(name, kind[:-1]))
        entry = await self._bucket.get(key, from_leader=True)
        if entry is None:
            raise NotFoundError(
                f"there is no {kind[:-1]} {name!r} in environment {environment!r}",
                fix=f"Make it: `squall {kind[:-1]} create {name}`, or from_name(..., create_if_missing=True).",
            )
        return ObjectRecord.decode(entry.value)

    async def of_id(self, kind: str, object_id: str, workspace: str) -> ObjectRecord:
        """One by its id. Raises `NotFoundError`, also for one of another workspace or kind."""
        place, now = (workspace, object_id), self._clock.monotonic()
        known = self._known.get(place)
        if known is None or known[0] <= now:
            valid = _ID.fullmatch(object_id) is not None
            entry = await self._bucket.get(object_id_key(workspace, object_id), from_leader=True) if valid else None
            if entry is None:
                raise _gone(kind, object_id)
            known = self._known[place] = (now + KNOWN_S, ObjectRecord.decode(entry.value))
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        if known[1].kind != kind:
            raise _gone(kind, object_id)
        return known[1]

    async def check_volumes(self, specs: Sequence[FunctionSpec], workspace: str) -> None:
        """Refuse an app whose volumes are not there, or are another workspace's. Raises `NotFoundError`."""
        for spec in specs:
            for mount in spec.volumes:
                try:
                    await self.of_id("volumes", mount.volume, workspace)
                except NotFoundError as error:
                    raise NotFoundError(f"function {spec.name!r}: {error.message}", fix=error.hint) from None

    async def list(self, kind: str, environment: str, workspace: str) -> list[ObjectInfo]:
        """Those with names."""
        prefix = objects_of(workspace, check_name(environment, "environment"), kind)
        return [info_of(ObjectRecord.decode(entry.value)) for entry in await self._bucket.entries(prefix)]

    async def delete(self, kind: str, name: str, environment: str, workspace: str) -> ObjectInfo:
        """Remove one and what is in it. Raises `NotFoundError`."""
        record = await self._named(kind, name, environment, workspace)
        await self._bucket.delete(object_name_key(workspace, environment, kind, name))
        await self._forget(record)
        return info_of(record)

    async def rename(self, kind: str, name: str, new_name: str, environment: str, workspace: str) -> ObjectInfo:
        """Another name for one. Raises `NotFoundError`, `AlreadyExistsError`."""
        record = replace(await self._named(kind, name, environment, workspace), name=check_name(new_name, kind[:-1]))
        try:
            await self._bucket.create(object_name_key(workspace, environment, kind, new_name), record.encode())
        except KeyExists:
            raise AlreadyExistsError(f"{kind[:-1]} {new_name!r} is there", fix="Choose another name.") from None
        await self._bucket.put(object_id_key(workspace, record.object_id), record.encode())
        await self._bucket.delete(object_name_key(workspace, environment, kind, name))
        return info_of(record)

    async def renew(self, object_id: str, workspace: str) -> ObjectInfo:
        """One without a name is still in use. Raises `NotFoundError`."""
        record = await self._nameless(object_id, workspace)
        await self._bucket.put(object_id_key(workspace, object_id), record.encode(), EPHEMERAL_S)
        return info_of(record)

    async def drop(self, object_id: str, workspace: str) -> ObjectInfo:
        """One without a name is no longer used. Raises `NotFoundError`."""
        record = await self._nameless(object_id, workspace)
        await self._forget(record)
        return info_of(record)

    async def _nameless(self, object_id: str, workspace: str) -> ObjectRecord:
        valid = _ID.fullmatch(object_id) is not None
        entry = await self._bucket.get(object_id_key(workspace, object_id), from_leader=True) if valid else None
        record = None if entry is None else ObjectRecord.decode(entry.value)
        if record is None or record.name:
            raise _gone("objects without a name", object_id)
        return record

    async def _forget(self, record: ObjectRecord) -> None:
        await self._bucket.delete(object_id_key(record.workspace, record.object_id))
        self._known.pop((record.workspace, record.object_id), None)
        await self.clears[record.kind](record.workspace, record.object_id)


def _gone(kind: str, object_id: str) -> NotFoundError:
    return NotFoundError(f"{kind}: there is no {object_id} (any more)", fix="Look it up by its name again.")


def info_of(record: ObjectRecord) -> ObjectInfo:
    """What is told about an object."""
    return ObjectInfo(
        id=record.object_id,
        kind=record.kind,
        name=record.name,
        environment=record.environment,
        created_at=record.created_at,
    )
