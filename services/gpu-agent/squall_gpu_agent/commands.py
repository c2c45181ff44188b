"""Commands: what operators ask of this node through a gateway. Hears them, has them done, answers.

A drain lasts until somebody resumes the node: it is a fact of the machine, and lies in the agent's folder there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from squall.errors import SquallError
from squall_bus import Bus, Message, Subscription
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage
from squall_contracts.nodes import Command, NodeAnswer, NodeCommand
from squall_gpu_agent.backend import Backend
from squall_gpu_agent.claims import Claims
from squall_gpu_agent.drained import Drained
from squall_gpu_agent.executing import Executing
from squall_gpu_agent.facts import NodeFacts
from squall_gpu_agent.identity import Identity
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.tenancy import Tenancy
from squall_images.eviction import Unwanted
from squall_service.clock import Clock
from squall_service.telemetry import log


class Commands:
    """Carries out commands."""

    def __init__(  # noqa: PLR0913 — its parts
        self,
        bus: Bus,
        identity: Identity,
        *,
        drained: Drained,
        facts: NodeFacts,
        claims: Claims,
        tasks: Tasks,
        backend: Backend,
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._identity = identity
        self._drained = drained
        self._facts = facts
        self._claims = claims
        self._tasks = tasks
        self._backend = backend
        self._clock = clock
        self._executing = Executing()
        self._do: dict[str, Callable[[NodeCommand], Coroutine[Any, Any, None]]] = {
            Command.DRAIN: self._drain,
            Command.RESUME: self._resume,
            Command.STOP_CONTAINER: self._stop_container,
            Command.EXECUTE: self._execute,
            Command.PRUNE_IMAGES: self._prune_images,
        }

    async def listen(self) -> Subscription:
        """From now on."""
        subject = subjects.command(self._identity.region, self._identity.node)
        return await self._bus.subscribe(subject, self.on_command)

    def on_command(self, message: Message) -> None:
        """Somebody wants something."""
        try:
            command = NodeCommand.decode(message.data)
        except BadMessage as error:
            log.warning("command_not_understood", reason=error.message)
            return
        log.info("command", command=command.command, container=command.container)
        do = self._do.get(command.command)
        if do is None:
            self._refuse(command, f"this node's release does not know the command {command.command!r}", "Update it.")
            return
        self._tasks.start(do(command), f"command {command.command}")

    # ------------------------------------------------------------------ the node

    async def _drain(self, command: NodeCommand) -> None:
        await self._drained.record(True)
        await self._facts.publish()
        for tenancy in list(self._claims.tenancies.values()):
            tenancy.drain()
        self._answer(command)

    async def _resume(self, command: NodeCommand) -> None:
        await self._drained.record(False)
        await self._facts.publish()
        self._answer(command)

    async def _prune_images(self, command: NodeCommand) -> None:
        unwanted = Unwanted(images=frozenset(command.images), since=command.since)
        try:
            freed = await self._backend.prune_images(unwanted, self._clock.now(), dry_run=command.dry_run)
        except (OSError, SquallError) as error:
            self._refuse(command, f"its images could not be removed: {error}", "Look at its disk.")
            return
        if freed.images and not command.dry_run:
            await self._facts.publish()
        counts = {"images": len(freed.images), "layers": len(freed.layers), "kept_bytes": freed.kept_bytes}
        self._answer(command, bytes=freed.bytes, **counts)

    # ------------------------------------------------------------------ a container

    async def _stop_container(self, command: NodeCommand) -> None:
        tenancy = self._tenancy(command)
        if tenancy is None:
            return
        if command.graceful:
            tenancy.drain()
        else:
            tenancy.hurry()
        self._answer(command)

    async def _execute(self, command: NodeCommand) -> None:
        tenancy = self._tenancy(command)
        if tenancy is None:
            return
        if tenancy.pooled is None:
            self._refuse(command, f"{command.container} has not started yet", "Wait until it is ready.")
            return

        def tell(stream: str, data: bytes) -> None:
            self._answer(command, last=False, stream=stream, data=data)

        status, error = await self._executing.run(tenancy.pooled.container, command.words, command.timeout_s, tell)
        if error:
            self._refuse(command, error, "Name a program that the container's image or this node has.")
        else:
            self._answer(command, status=status)

    def _tenancy(self, command: NodeCommand) -> Tenancy | None:
        for tenancy in self._claims.tenancies.values():
            if tenancy.claim.container == command.container:
                return tenancy
        self._refuse(command, f"{command.container} has ended", "`squall container list` shows those that are there.")
        return None

    # ------------------------------------------------------------------ answers

    def _refuse(self, command: NodeCommand, why: str, fix: str) -> None:
        self._answer(command, error=why, fix=fix)

    def _answer(self, command: NodeCommand, **told: object) -> None:
        containers = len(self._claims.tenancies)
        answer = NodeAnswer(node=self._identity.node, containers=containers, **told)  # type: ignore[arg-type]
        self._bus.send(command.reply_to, answer.encode())
