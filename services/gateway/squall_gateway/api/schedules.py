"""/v1/schedules: look, pause, resume, run now."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request

from squall.http_api.routes import Route
from squall.http_api.schedules import RanSchedule, ScheduleInfo
from squall_gateway.api.requests import workspace_of
from squall_gateway.schedules import Schedules


@dataclass(frozen=True)
class ScheduleList:
    """GET /v1/schedules."""

    schedules: list[ScheduleInfo]


@dataclass(frozen=True, slots=True)
class ScheduleRoutes:
    """What people do with schedules."""

    schedules: Schedules

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["schedules"])
        router.get(Route.SCHEDULES)(self.list_schedules)
        router.post(Route.SCHEDULE_PAUSE)(self.pause)
        router.post(Route.SCHEDULE_RESUME)(self.resume)
        router.post(Route.SCHEDULE_RUN)(self.run)
        return router

    async def list_schedules(self, request: Request, environment: str = "main") -> ScheduleList:
        """The schedules of an environment: when they are due, what came of the last ticks."""
        return ScheduleList(await self.schedules.list(environment, workspace_of(request)))

    async def pause(self, request: Request, schedule: str) -> ScheduleInfo:
        """No ticks until it is resumed."""
        return await self.schedules.pause(schedule, workspace_of(request))

    async def resume(self, request: Request, schedule: str) -> ScheduleInfo:
        """Ticks from now on; what was due meanwhile is not made up for."""
        return await self.schedules.resume(schedule, workspace_of(request))

    async def run(self, request: Request, schedule: str, call: str = "") -> RanSchedule:
        """Call its function now. Its ticks stay as they are. A request that is repeated with the same `call`, the id of
        the call to make, makes one."""
        return await self.schedules.run(schedule, workspace_of(request), call)
