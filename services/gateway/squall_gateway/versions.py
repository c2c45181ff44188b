"""Versions of deployed apps: the history, and the way back. Writes app records as `apps` does, by compare-and-set.

A rollback is a new version with the functions of an earlier one: the pointer moves, nothing is uploaded, nothing built
but images that were pruned, and containers of that version that are still there serve at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from squall.errors import ConflictError, NotFoundError
from squall.http_api.apps import AppVersion
from squall_contracts.functions import AppRecord, DeployedVersion
from squall_gateway.apps import HISTORY, Apps
from squall_gateway.directory import Directory
from squall_gateway.images import ask_for


@dataclass(frozen=True, slots=True)
class Versions:
    """Looks at versions and moves between them."""

    apps: Apps
    directory: Directory

    async def history(self, app: str, workspace: str, environment: str) -> list[AppVersion]:
        """The versions that are remembered, newest first. Raises `NotFoundError`."""
        return history_of((await self.directory.find_app(app, workspace, environment)).record)

    async def rollback(self, app: str, workspace: str, environment: str, version: int | None) -> AppRecord:
        """Make an earlier version the present one. Raises `NotFoundError`, `ConflictError`."""
        found = (await self.directory.find_app(app, workspace, environment)).record
        now = self.apps.clock.now()
        await self._check_images(rolled_back(found, version, now), workspace)
        record = await self.apps.change(found.app_id, workspace, lambda present: rolled_back(present, version, now))
        for function_id in record.functions.values():
            await self.apps.open_pool_if_kept_warm(await self.directory.function(function_id, workspace))
        return record

    async def _check_images(self, wanted: AppRecord, workspace: str) -> None:
        """While an app is stopped, nothing needs images of its versions. Has those built that were pruned then, and
        raises `ConflictError` for them."""
        gone = set()
        for function_id in wanted.functions.values():
            image = (await self.directory.function(function_id, workspace)).spec.image
            if not await self.apps.images.is_there(image.id):
                await ask_for(self.apps.bus, image, workspace, self.apps.clock.now())
                gone.add(image.id)
        if gone:
            raise ConflictError(
                f"{', '.join(sorted(gone))} of that version of {wanted.name!r} was pruned while the app was stopped",
                fix="It is being built again: roll back once `squall image show` says that it is ready.",
            )


def history_of(record: AppRecord) -> list[AppVersion]:
    """The remembered versions, newest first."""
    return [
        AppVersion(
            version=line.version,
            deployed_at=line.deployed_at,
            functions=tuple(sorted(line.functions)),
            rolled_back_to=line.rolled_back_to,
            current=line.version == record.version and record.state == "deployed",
            tag=line.tag,
        )
        for line in reversed(record.history)
    ]


def rolled_back(app: AppRecord, version: int | None, now: float) -> AppRecord:
    """The record with the functions of an earlier version; of the one before the present if none is named. Pure."""
    if app.state != "deployed":
        raise ConflictError(
            f"app {app.name!r} is {app.state}, only deployed apps have versions to go back to",
            fix="Deploy it: `squall deploy`.",
        )
    line = wanted_line(app, version)
    if line.functions == app.functions:
        raise ConflictError(
            f"version {line.version} of {app.name!r} is what runs now", fix="`squall app history` shows the versions."
        )
    new = DeployedVersion(
        version=app.version + 1, deployed_at=now, functions=line.functions, rolled_back_to=original(line), web=line.web
    )
    return replace(
        app,
        version=new.version,
        functions=line.functions,
        web=line.web,
        updated_at=now,
        history=(*app.history, new)[-HISTORY:],
    )


def wanted_line(app: AppRecord, version: int | None) -> DeployedVersion:
    """The line of history that is gone back to. Raises `NotFoundError`."""
    if version is None:
        # Twice in a row goes back twice, not back and forth: what a rollback skipped is not gone back to.
        present = original(find_line(app.history, app.version))
        earlier = [line for line in app.history if line.version < present and not line.rolled_back_to]
        if not earlier:
            raise NotFoundError(f"app {app.name!r} has no earlier version", fix="Deploy what it should be.")
        return earlier[-1]
    for line in app.history:
        if line.version == version:
            return line
    raise NotFoundError(
        f"app {app.name!r} has no version {version}", fix=f"`squall app history {app.name}` shows what there is."
    )


def find_line(history: Sequence[DeployedVersion], version: int) -> DeployedVersion | None:
    """The line of a version."""
    return next((line for line in history if line.version == version), None)


def original(line: DeployedVersion | None) -> int:
    """The version whose functions a line has."""
    return 0 if line is None else line.rolled_back_to or line.version
