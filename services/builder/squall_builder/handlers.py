"""Handlers: one request to build an image, from the queue to its stored answer."""

from __future__ import annotations

import asyncio

from squall.errors import ImageBuildError, InternalError, InvalidError, SquallError, to_wire
from squall_builder.build_log import BuildLog
from squall_builder.engine import Built, Engine
from squall_builder.metrics import Metrics
from squall_builder.policy.requests import Again, Answered, GiveUp, after_breakdown, judge
from squall_builder.state import Known
from squall_bus import Bus, Delivery
from squall_contracts.builds import IMAGES, BuildImage, ImageRecord
from squall_service.clock import Clock
from squall_service.telemetry import log

ACK_WAIT_S = 12.0
HEARTBEAT_S = 4.0
"""Three times in an ack wait: two lost ones do not give the build to somebody else."""


BREAKDOWNS = (OSError, ValueError, LookupError, RuntimeError)
"""What the machine, or a package with broken metadata, does to a build. It is tried again, then told to the user."""


class Builder:
    """Builds what it is asked for, at most `concurrency` images at a time."""

    def __init__(self, bus: Bus, clock: Clock, engine: Engine, name: str) -> None:
        self._bus = bus
        self._clock = clock
        self._engine = engine
        self._name = name
        self._images = bus.kv(IMAGES)
        self.building: set[str] = set()
        self.metrics = Metrics()

    async def on_build_requested(self, delivery: Delivery) -> None:
        """Take one request to its answer, and only then off the queue."""
        try:
            command = BuildImage.decode(delivery.data)
        except InvalidError as error:
            log.error("build_not_understood", subject=delivery.subject, reason=error.message)
            delivery.term()
            return
        verdict = judge(command.requested_at, await self._known(command.image))
        if isinstance(verdict, Answered):
            self.metrics.builds["answered"] += 1
            log.info("build_answered_already", image=command.image, reason=verdict.reason)
            delivery.ack()
            return
        try:
            await self._build_alive(command, delivery)
        except asyncio.CancelledError:
            delivery.nak()  # we are stopping: another builder can begin at once
            raise

    async def _build_alive(self, command: BuildImage, delivery: Delivery) -> None:
        """Build while telling the queue that the request is being worked on."""
        self.building.add(command.image)
        try:
            async with asyncio.TaskGroup() as tasks:
                heartbeat = tasks.create_task(self._keep(delivery))
                await self._build(command, delivery)
                heartbeat.cancel()
        finally:
            self.building.discard(command.image)

    async def _keep(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await delivery.in_progress()

    async def _build(self, command: BuildImage, delivery: Delivery) -> None:
        began = self._clock.now()
        lines = BuildLog(self._bus, self._clock, command.image, self._name)
        await self._store(
            ImageRecord(
                image=command.image, state="building", updated_at=began, spec=command.spec, workspace=command.workspace
            )
        )
        try:
            built = await self._engine.build(command.spec, lines.add)
        except ImageBuildError as error:
            await self._answer_failed(command, delivery, lines, error)
        except BREAKDOWNS as error:
            await self._broke_down(command, delivery, lines, error)
        else:
            await self._answer_ready(command, delivery, lines, built, began)

    async def _answer_ready(
        self, command: BuildImage, delivery: Delivery, lines: BuildLog, built: Built, began: float
    ) -> None:
        now = self._clock.now()
        lines.add(f"image ready in {now - began:.1f} s: {len(built.lock)} packages", "system")
        record = ImageRecord(
            image=command.image,
            state="ready",
            updated_at=now,
            lock=built.lock,
            python=built.python,
            build_ms=(now - began) * 1000,
            layers=built.layers,
            spec=command.spec,
            workspace=command.workspace,
        )
        await self._answer(record, delivery, lines)
        self.metrics.builds["ready"] += 1
        log.info("image_built", image=command.image, packages=len(built.lock), build_ms=round(record.build_ms))

    async def _answer_failed(
        self, command: BuildImage, delivery: Delivery, lines: BuildLog, error: SquallError
    ) -> None:
        lines.add(error.message, "system")
        record = ImageRecord(
            image=command.image,
            state="failed",
            updated_at=self._clock.now(),
            error=to_wire(error),
            spec=command.spec,
            workspace=command.workspace,
        )
        await self._answer(record, delivery, lines)
        self.metrics.builds["failed"] += 1
        log.warning("image_failed", image=command.image, reason=error.message)

    async def _broke_down(self, command: BuildImage, delivery: Delivery, lines: BuildLog, error: Exception) -> None:
        match after_breakdown(delivery.num_delivered, repr(error)):
            case Again() as again:
                self.metrics.builds["broke_down"] += 1
                log.warning("build_broke_down", image=command.image, reason=again.reason, again_s=again.after_s)
                delivery.nak(again.after_s)
            case GiveUp() as given_up:
                fix = "Look at the builder's machine: its disk, memory and process limits."
                await self._answer_failed(command, delivery, lines, InternalError(given_up.reason, fix=fix))

    async def _answer(self, record: ImageRecord, delivery: Delivery, lines: BuildLog) -> None:
        """Log before record before ack: who sees the record finds all of its log."""
        lines.send()
        await self._bus.flush()
        await self._store(record)
        delivery.ack()

    async def _store(self, record: ImageRecord) -> None:
        await self._images.put(record.image, record.encode())

    async def _known(self, image: str) -> Known:
        entry = await self._images.get(image)
        if entry is None:
            return Known()
        record = ImageRecord.decode(entry.value)
        return Known(state=record.state, updated_at=record.updated_at)
