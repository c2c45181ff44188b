"""Environments: made, listed, removed; and asked for before anything is made in one. Owns their records."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from squall.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError
from squall.http_api.access import EnvironmentInfo
from squall.ids import check_name
from squall_bus import Bus, KeyExists
from squall_contracts.environments import DEFAULT_ENVIRONMENT, EnvironmentRecord, environment_key, environments_of
from squall_contracts.objects import OBJECTS, PREFIXES
from squall_gateway.directory import Directory
from squall_gateway.image_records import ImageRecords
from squall_gateway.objects import Objects
from squall_gateway.secrets import Secrets
from squall_service.clock import Clock

KNOWN_S = 10.0
"""Something may be made in an environment for so long after it was removed on another gateway."""
MAX_KNOWN = 10_000

Look = Callable[[str, str], Awaitable[Sequence[str]]]
"""What is in an environment, in words; gets environment and workspace."""


@dataclass(slots=True)
class Environments:
    """The environments of all workspaces."""

    bus: Bus
    directory: Directory
    clock: Clock
    contents: Look
    """Asked before one is removed."""
    _known: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict)

    async def require(self, environment: str, workspace: str) -> str:
        """`environment` itself if there is one of that name. Raises `NotFoundError`."""
        check_name(environment, "environment")
        place, now = (workspace, environment), self.clock.monotonic()
        if environment == DEFAULT_ENVIRONMENT or self._known.get(place, 0.0) > now:
            return environment
        entry = await self.bus.kv(OBJECTS).get(environment_key(workspace, environment), from_leader=True)
        if entry is None and environment not in self._of_apps(workspace):
            raise NotFoundError(
                f"there is no environment {environment!r}",
                fix=f"Make it: `squall environment create {environment}` (`squall environment list`: those that are).",
            )
        self._known[place] = now + KNOWN_S
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return environment

    def _of_apps(self, workspace: str) -> set[str]:
        """Those that apps have been made in before environments had records."""
        apps = (known.record for known in self.directory.apps())
        return {record.environment for record in apps if record.workspace == workspace and record.state != "stopped"}

    async def create(self, name: str, workspace: str) -> EnvironmentInfo:
        """Make one. Raises `AlreadyExistsError`."""
        check_name(name, "environment")
        record = EnvironmentRecord(name, workspace, self.clock.now())
        try:
            if name == DEFAULT_ENVIRONMENT:
                raise KeyExists("every workspace has it")
            await self.bus.kv(OBJECTS).create(environment_key(workspace, name), record.encode())
        except KeyExists:
            raise AlreadyExistsError(f"environment {name!r} is there", fix="Choose another name.") from None
        return EnvironmentInfo(name, record.created_at)

    async def every(self, workspace: str) -> list[EnvironmentInfo]:
        """All of a workspace."""
        entries = await self.bus.kv(OBJECTS).entries(environments_of(workspace))
        found = {each.name: each.created_at for each in (EnvironmentRecord.decode(entry.value) for entry in entries)}
        for name in {DEFAULT_ENVIRONMENT, *self._of_apps(workspace)}:
            found.setdefault(name, 0.0)
        return [EnvironmentInfo(name, found[name]) for name in sorted(found)]

    async def delete(self, name: str, workspace: str) -> EnvironmentInfo:
        """Remove an empty one. Raises `NotFoundError`, `ConflictError` naming what is in it."""
        if name == DEFAULT_ENVIRONMENT:
            raise InvalidError(f"{name!r} is there in every workspace", fix="Remove what is in it instead.")
        await self.require(name, workspace)
        found = await self.contents(name, workspace)
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ConflictError(
                f"environment {name!r} is not empty: {', '.join(found[:5])}{more}",
                fix="Stop its apps and delete its objects first.",
            )
        key = environment_key(workspace, name)
        entry = await self.bus.kv(OBJECTS).get(key, from_leader=True)
        await self.bus.kv(OBJECTS).delete(key)
        self._known.pop((workspace, name), None)
        return EnvironmentInfo(name, EnvironmentRecord.decode(entry.value).created_at if entry else 0.0)


def in_words(directory: Directory, objects: Objects, secrets: Secrets, images: ImageRecords) -> Look:
    """How it is told what is in an environment."""

    async def look(environment: str, workspace: str) -> list[str]:
        apps = (known.record for known in directory.apps())
        mine = (record for record in apps if (record.workspace, record.environment) == (workspace, environment))
        found = [f"app {record.name!r}" for record in mine if record.state != "stopped"]
        for kind in PREFIXES:
            found += [f"{kind[:-1]} {each.name!r}" for each in await objects.list(kind, environment, workspace)]
        found += [f"secret {each.name!r}" for each in await secrets.list(environment, workspace)]
        return found + [f"image {name!r}" for name in await images.names_of(environment, workspace)]

    return look
