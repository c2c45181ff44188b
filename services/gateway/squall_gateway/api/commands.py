"""/v1/nodes/{node}/drain and resume, /v1/containers/{container}/stop and exec: what operators tell machines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from squall.errors import InvalidError
from squall.http_api.fleet import DrainedNode, Execute, StopContainer, StoppedContainer
from squall.http_api.routes import Route
from squall_contracts.nodes import Command, NodeCommand
from squall_gateway.api.requests import Lines, exchange_of, workspace_of
from squall_gateway.commands import ANSWER_S, NodeCommands, next_answer
from squall_gateway.feeds import Feed

MAX_EXECUTE_S = 3600.0


@dataclass(frozen=True, slots=True)
class CommandRoutes:
    """Commands to machines."""

    commands: NodeCommands
    draining: asyncio.Event

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(tags=["fleet"])
        router.post(Route.NODE_DRAIN)(self.drain)
        router.post(Route.NODE_RESUME)(self.resume)
        router.post(Route.CONTAINER_STOP)(self.stop)
        router.post(Route.CONTAINER_EXEC, response_class=Response)(self.execute)
        return router

    async def drain(self, node: str) -> DrainedNode:
        """No new containers on a node; those that it has end once their inputs have. Until it resumes."""
        return DrainedNode(node, await self.commands.drain(node), draining=True)

    async def resume(self, node: str) -> DrainedNode:
        """A drained node takes containers again."""
        return DrainedNode(node, await self.commands.drain(node, resume=True), draining=False)

    async def stop(self, request: Request, container: str, wanted: StopContainer | None = None) -> StoppedContainer:
        """End a container. Its inputs run again elsewhere, unless `graceful` lets them end first."""
        graceful = wanted is not None and wanted.graceful
        claim = await self.commands.stop_container(container, workspace_of(request), graceful=graceful)
        return StoppedContainer(container, claim.node)

    async def execute(self, request: Request, container: str, wanted: Execute) -> Response:
        """Run a command with the variables, packages and folder of a container: lines of
        `{"stream": ..., "text": ...}`, the last one is `{"status": n}` or `{"error": ...}`. No input, no terminal."""
        if not wanted.command or not all(wanted.command) or any("\0" in word for word in wanted.command):
            raise InvalidError("`command` is not a list of words", fix='Send {"command": ["python", "-V"]}.')
        if not 0 < wanted.timeout_s <= MAX_EXECUTE_S:
            raise InvalidError(f"timeout_s must be above 0 and at most {MAX_EXECUTE_S:g}")
        claim = self.commands.claim(container, workspace_of(request))
        command = NodeCommand(
            Command.EXECUTE, "", container=container, words=list(wanted.command), timeout_s=wanted.timeout_s
        )
        return Lines(Feed(exchange_of(request), self.draining), self._output(claim.node, command))

    async def _output(self, node: str, command: NodeCommand) -> AsyncGenerator[bytes, None]:
        async with self.commands.asking(node, command) as answers:
            while True:
                answer = await next_answer(answers, node, command.timeout_s + ANSWER_S)
                if answer.last:
                    yield json.dumps({"status": answer.status}).encode() + b"\n"
                    return
                text = answer.data.decode("utf-8", "replace")
                yield json.dumps({"stream": answer.stream, "text": text}).encode() + b"\n"
