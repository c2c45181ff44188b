"""GET /v1/letters, POST /v1/letters/redrive and POST /v1/calls/{id}/redrive: dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query, Request

from squall.errors import InvalidError
from squall.http_api.calls import LetterInfo, RedriveLetters, Redrives
from squall.http_api.routes import Route
from squall_gateway.api.requests import workspace_of
from squall_gateway.directory import Directory
from squall_gateway.letters import Letters
from squall_gateway.redrives import Redriving
from squall_gateway.results import Results

MAX_PAGE = 1000


@dataclass(frozen=True)
class LetterList:
    """GET /v1/letters."""

    letters: list[LetterInfo]
    total: int
    """How many there are, also beyond the limit."""


@dataclass(frozen=True, slots=True)
class LetterRoutes:
    """Calls that ended badly, and their second chance."""

    letters: Letters
    redriving: Redriving
    results: Results
    directory: Directory

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["dead letters"])
        router.get(Route.LETTERS)(self.list_letters)
        router.post(Route.LETTERS_REDRIVE)(self.redrive_letters)
        router.post(Route.CALL_REDRIVE)(self.redrive_call)
        return router

    async def list_letters(
        self,
        request: Request,
        app: str = "",
        environment: str = "main",
        since: Annotated[float, Query(ge=0)] = 0.0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    ) -> LetterList:
        """Spawned inputs that failed, timed out or expired, the last ones first."""
        workspace = workspace_of(request)
        app_id = await self._app_id(app, workspace, environment)
        rows, total = await self.letters.newest(workspace, app_id, since, limit)
        return LetterList(rows, total)

    async def redrive_letters(self, request: Request, wanted: RedriveLetters) -> Redrives:
        """Make new calls of a page of dead letters that were not redriven yet; the cursor leads to the next page."""
        if not 1 <= wanted.limit <= MAX_PAGE:
            raise InvalidError(f"limit must be from 1 to {MAX_PAGE}, got {wanted.limit}")
        workspace = workspace_of(request)
        app_id = await self._app_id(wanted.app, workspace, wanted.environment)
        return await self.redriving.page(workspace, app_id, wanted.since, wanted.limit, wanted.cursor)

    async def redrive_call(self, request: Request, call: str) -> Redrives:
        """Make new calls of the failed inputs of a spawned call; the same ones if that was done before."""
        return await self.redriving.call(self.results.check(call), workspace_of(request))

    async def _app_id(self, app: str, workspace: str, environment: str) -> str:
        return (await self.directory.find_app(app, workspace, environment)).record.app_id if app else ""
