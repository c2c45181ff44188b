"""Commands to machines: drain, stop a container, run something beside it. The node's agent decides and does; this asks.

A node answers within a second or is gone: commands are plain messages, and nothing is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from squall.errors import ConflictError, NotFoundError, ServiceError, SquallError
from squall_bus import Bus, Message
from squall_contracts import subjects
from squall_contracts.nodes import ClaimState, Command, ContainerClaim, NodeAnswer, NodeCommand
from squall_gateway.fleet import Fleet
from squall_service.telemetry import log

ANSWER_S = 5.0
_PRESENT = (ClaimState.PROPOSED, ClaimState.STARTING, ClaimState.READY, ClaimState.DRAINING)


@dataclass(frozen=True, slots=True)
class NodeCommands:
    """Asks the agents of nodes."""

    bus: Bus
    fleet: Fleet

    async def drain(self, node: str, *, resume: bool = False) -> int:
        """No new containers there (or again); the number of containers that it has. Raises `NotFoundError`."""
        names = sorted(fact.node for fact in await self.fleet.nodes())
        if node not in names:
            raise NotFoundError(f"there is no node {node!r}", fix=f"There are: {', '.join(names) or 'none'}.")
        command = Command.RESUME if resume else Command.DRAIN
        return (await self._ask(node, NodeCommand(command, ""))).containers

    async def stop_container(self, container: str, workspace: str, *, graceful: bool) -> ContainerClaim:
        """End a container; its claim as it was. Raises `NotFoundError`."""
        claim = self.claim(container, workspace)
        await self._ask(claim.node, NodeCommand(Command.STOP_CONTAINER, "", container=container, graceful=graceful))
        return claim

    async def end_earlier(self, app_id: str, functions: Collection[str]) -> int:
        """End every container of the app that does not belong to these function versions: what runs in them starts
        again. A node that does not answer keeps its own, as with any deploy. The number of those that end."""
        earlier = [
            claim
            for claim in self.fleet.all_claims()
            if claim.app_id == app_id and claim.function_id not in functions and claim.state in _PRESENT
        ]

        async def end(claim: ContainerClaim) -> None:
            command = NodeCommand(Command.STOP_CONTAINER, "", container=claim.container, graceful=False)
            try:
                await self._ask(claim.node, command)
            except SquallError as error:
                log.warning("container_not_stopped", container=claim.container, reason=error.message)

        async with asyncio.TaskGroup() as tasks:
            for claim in earlier:
                tasks.create_task(end(claim))
        return len(earlier)

    def claim(self, container: str, workspace: str) -> ContainerClaim:
        """The claim of a container. Raises `NotFoundError`, also for one of another workspace."""
        for claim in self.fleet.all_claims():
            if claim.container == container and claim.workspace == workspace:
                if claim.state in (ClaimState.REFUSED, ClaimState.FAILED):
                    raise ConflictError(f"{container} is not running: {claim.state}: {claim.reason}")
                return claim
        raise NotFoundError(
            f"there is no container {container!r}", fix="`squall container list` shows those that are there."
        )

    async def _ask(self, node: str, command: NodeCommand) -> NodeAnswer:
        async with self.asking(node, command) as answers:
            return await next_answer(answers, node, ANSWER_S)

    @asynccontextmanager
    async def asking(self, node: str, command: NodeCommand) -> AsyncIterator[asyncio.Queue[NodeAnswer]]:
        """Send a command; its answers arrive in the queue."""
        answers: asyncio.Queue[NodeAnswer] = asyncio.Queue()

        def on_answer(message: Message) -> None:
            answers.put_nowait(NodeAnswer.decode(message.data))

        inbox = self.bus.new_inbox()
        listening = await self.bus.subscribe(inbox, on_answer)
        try:
            wanted = replace(command, reply_to=inbox)
            self.bus.send(subjects.command(self.bus.topology.region, node), wanted.encode())
            yield answers
        finally:
            await listening.close()


async def next_answer(answers: asyncio.Queue[NodeAnswer], node: str, within_s: float) -> NodeAnswer:
    """The next answer. Raises what the node says is wrong, or `ServiceError` when it says nothing."""
    try:
        async with asyncio.timeout(within_s):
            answer = await answers.get()
    except TimeoutError:
        raise ServiceError(
            f"node {node} did not answer within {within_s:g} s",
            fix="See with `squall node list` whether it is there, then ask again.",
        ) from None
    if answer.error:
        raise refused(answer)
    return answer


def refused(answer: NodeAnswer) -> SquallError:
    """What a node would not do."""
    return ConflictError(f"{answer.error} (node {answer.node})", fix=answer.fix or ConflictError.fix)
