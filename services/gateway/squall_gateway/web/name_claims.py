"""Claims of web names by deployed apps: of two gateways that deploy two apps with one name, one is told so.

A gateway's view of what others write is a moment old, so the view alone cannot decide. Owns the keys `name.web.*` of
the bucket `apps`; which app answers to a name is still read from the apps' records.
"""

from __future__ import annotations

from squall.errors import ConflictError
from squall.spec import digest
from squall_bus import Bus, Entry, KeyExists, WrongRevision
from squall_contracts.functions import APPS, AppRecord
from squall_service.clock import Clock

TRIES = 8
DEPLOYING_S = 30.0
"""From an app's claim of a name to its record. After that the deploy is over, or its gateway is."""


def name_key(name: str) -> str:
    """Key of a name's claim; its value is the id of the app. (Names of apps have four parts, this has three.)"""
    return f"name.web.{digest(name)[:32]}"


class NameClaims:
    """Takes names by compare-and-set."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._apps = bus.kv(APPS)
        self._clock = clock

    async def claim(self, record: AppRecord) -> None:
        """All names of a deployed app, before it is written. Raises `ConflictError` for one that is another app's."""
        if record.state == "deployed":
            for name in record.web:
                await self._claim(name, record)

    async def _claim(self, name: str, record: AppRecord) -> None:
        key, mine = name_key(name), record.app_id.encode()
        for _ in range(TRIES):
            entry = await self._apps.get(key)
            try:
                if entry is None:
                    await self._apps.create(key, mine)
                    return
                if entry.value == mine:
                    return
                await self._refuse_if_used(name, entry)
                await self._apps.update(key, mine, entry.revision)
                return
            except (KeyExists, WrongRevision):
                continue
        raise ConflictError(f"the web address {name!r} changes hands at the moment", fix="Deploy again.")

    async def _refuse_if_used(self, name: str, claim: Entry) -> None:
        """Revisions of one bucket are in the order of the writes: an app that was written after its claim, and has not
        the name, has given it up; one that was not is being deployed, or its deploy was broken off."""
        entry = await self._apps.get(claim.value.decode())
        other = None if entry is None else AppRecord.decode(entry.value)
        if other is not None and other.state == "deployed" and name in other.web:
            raise ConflictError(
                f"the web address {name!r} belongs to {other.web[name]!r} of app {other.name!r}",
                fix="Give one of the functions another `label=`, or stop the other app.",
            )
        if (entry is None or entry.revision < claim.revision) and self._clock.now() - claim.created_at < DEPLOYING_S:
            raise ConflictError(
                f"another app with the web address {name!r} is being deployed at the moment",
                fix="Give one of the functions another `label=`.",
            )
