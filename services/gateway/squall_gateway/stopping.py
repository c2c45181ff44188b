"""Stopping apps: the record first, so that nothing more is accepted, then everything that was accepted is cancelled."""

from __future__ import annotations

from dataclasses import dataclass, field

from squall.errors import NotFoundError, SquallError
from squall_contracts.functions import AppRecord
from squall_gateway.apps import Apps
from squall_gateway.cancels import Cancels
from squall_service.clock import Clock
from squall_service.telemetry import log

SWEEP_S = 2.0
TIDY_S = 3600.0
AGAIN_S = 5.0
"""Another gateway may have taken a call in the milliseconds before it heard of the stop."""


@dataclass(slots=True)
class Stopping:
    """Ends apps, on request or because their client is gone."""

    apps: Apps
    cancels: Cancels
    clock: Clock
    _again: dict[str, tuple[float, AppRecord]] = field(default_factory=dict)
    """Apps that were stopped a moment ago, and when their queues are cleared once more."""

    async def stop(self, app_id: str, workspace: str, reason: str) -> AppRecord:
        """Stop an app; a stopped one is stopped again, so that a stop that broke half-way can be repeated."""
        record = await self.apps.mark_stopped(app_id, workspace, reason)
        cancelled = await self.cancels.app(record)
        log.info("app_stopped", app=app_id, name=record.name, reason=record.stop_reason, cancelled=cancelled)
        self._again[app_id] = (self.clock.now() + AGAIN_S, record)
        return record

    async def sweep(self) -> None:
        """Stop every ephemeral app whose client has not been heard of; clear up after those that were stopped."""
        await self._clear_again()
        for record in self.apps.abandoned():
            try:
                fresh = (await self.apps.directory.app(record.app_id, record.workspace, fresh=True)).record
                if self.apps.is_abandoned(fresh):
                    await self.stop(record.app_id, record.workspace, "its client is gone")
            except NotFoundError:
                continue
            except SquallError as error:
                log.warning("app_not_stopped", app=record.app_id, reason=error.message)

    async def tidy(self) -> None:
        """Forget what nobody can look at any more."""
        records = self.apps.forgettable()
        await self.apps.forget(records)
        for record in records:
            log.info("app_forgotten", app=record.app_id, name=record.name)

    async def _clear_again(self) -> None:
        now = self.clock.now()
        for app_id, (due, record) in list(self._again.items()):
            if due > now:
                continue
            known = await self.apps.directory.app(app_id, record.workspace, fresh=True)
            if known.record.state == "stopped":  # it may be deployed again, with calls that are wanted
                await self.cancels.app(record)
            del self._again[app_id]
