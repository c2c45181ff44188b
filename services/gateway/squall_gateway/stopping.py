"""Stopping apps: the record first, so that nothing more is accepted, then everything that was accepted is cancelled."""

from __future__ import annotations

from dataclasses import dataclass

from squall.errors import NotFoundError, SquallError
from squall_contracts.functions import AppRecord
from squall_gateway.apps import Apps
from squall_gateway.cancels import Cancels
from squall_service.telemetry import log

SWEEP_S = 2.0


@dataclass(frozen=True, slots=True)
class Stopping:
    """Ends apps, on request or because their client is gone."""

    apps: Apps
    cancels: Cancels

    async def stop(self, app_id: str, workspace: str, reason: str) -> AppRecord:
        """Stop an app; a stopped one is stopped again, so that a stop that broke half-way can be repeated."""
        record = await self.apps.mark_stopped(app_id, workspace, reason)
        cancelled = await self.cancels.app(record)
        log.info("app_stopped", app=app_id, name=record.name, reason=record.stop_reason, cancelled=cancelled)
        return record

    async def sweep(self) -> None:
        """Stop every ephemeral app whose client has not been heard of."""
        for record in self.apps.abandoned():
            try:
                fresh = (await self.apps.directory.app(record.app_id, record.workspace, fresh=True)).record
                if self.apps.is_abandoned(fresh):
                    await self.stop(record.app_id, record.workspace, "its client is gone")
            except NotFoundError:
                continue
            except SquallError as error:
                log.warning("app_not_stopped", app=record.app_id, reason=error.message)
