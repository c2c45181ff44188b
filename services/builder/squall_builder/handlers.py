"""Handlers: one request to build an image, from the queue to its stored answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from squall.errors import ImageBuildError, InternalError, InvalidError, SquallError, to_wire
from squall.spec import SecretRef, from_wire
from squall_builder import tokens
from squall_builder.build_log import BuildLog
from squall_builder.build_spans import BuildSpans
from squall_builder.engine import Built, Engine
from squall_builder.metrics import Metrics
from squall_builder.policy.requests import REMOVED_AGAIN_S, Again, Answered, GiveUp, Later, after_breakdown, judge
from squall_builder.state import Known
from squall_bus import Bus, BusError, Delivery, WrongRevision
from squall_contracts.builds import BUILDING, IMAGES, READY, REMOVING, REMOVING_S, BuildImage, ImageRecord
from squall_images.step_secrets import Secrets
from squall_service.clock import Clock
from squall_service.sealing import Sealer
from squall_service.secrets import Secrets as OpenSecrets
from squall_service.telemetry import log

ACK_WAIT_S = 12.0
HEARTBEAT_S = 4.0
"""Three times in an ack wait: two lost ones do not give the build to somebody else."""


BREAKDOWNS = (OSError, ValueError, LookupError, RuntimeError)
"""What the machine, or a package with broken metadata, does to a build. It is tried again, then told to the user."""


class Builder:
    """Builds what it is asked for, at most `concurrency` images at a time."""

    def __init__(self, bus: Bus, clock: Clock, engine: Engine, name: str, sealer: Sealer) -> None:
        self._bus = bus
        self._clock = clock
        self._engine = engine
        self.name = name
        self._images = bus.kv(IMAGES)
        self._secrets = OpenSecrets(bus, sealer)
        self.building: set[str] = set()
        self.removing: set[str] = set()
        """Images that are removed at the moment; none is in both."""
        self.metrics = Metrics()

    async def on_build_requested(self, delivery: Delivery) -> None:
        """Take one request to its answer, and only then off the queue."""
        try:
            command = BuildImage.decode(delivery.data)
        except InvalidError as error:
            log.error("build_not_understood", subject=delivery.subject, reason=error.message)
            delivery.term()
            return
        if command.image in self.removing:
            delivery.nak(REMOVED_AGAIN_S)
            return
        self.building.add(command.image)
        try:
            await self._take(command, delivery)
        except asyncio.CancelledError:
            delivery.nak()  # we are stopping: another builder can begin at once
            raise
        finally:
            self.building.discard(command.image)

    async def _take(self, command: BuildImage, delivery: Delivery) -> None:
        known, revision = await self._known(command.image)
        lost = command.lost and known.state == READY and not await self._engine.has(command.image, known.manifest)
        verdict = judge(command.requested_at, known, self._clock.now(), lost=lost)
        if lost:
            log.warning("image_lost", image=command.image)
        match verdict:
            case Answered():
                self.metrics.builds["answered"] += 1
                log.info("build_answered_already", image=command.image, reason=verdict.reason)
                delivery.ack()
            case Later():
                delivery.nak(verdict.after_s)
            case _ if not await self._begun(command, revision):
                delivery.nak(REMOVED_AGAIN_S)  # another builder has begun to remove it, or to build it
            case _:
                await self._build_alive(command, delivery)

    async def _begun(self, command: BuildImage, revision: int) -> bool:
        """Whether the image is being built from now on; not if its record is another one by now."""
        record = ImageRecord(
            image=command.image,
            state=BUILDING,
            updated_at=self._clock.now(),
            spec=command.spec,
            workspace=command.workspace,
        )
        try:
            await self._images.update(command.image, record.encode(), revision)
        except WrongRevision:
            return False
        return True

    async def _build_alive(self, command: BuildImage, delivery: Delivery) -> None:
        """Build while telling the queue that the request is being worked on."""
        async with asyncio.TaskGroup() as tasks:
            heartbeat = tasks.create_task(self._keep(delivery))
            await self._build(command, delivery)
            heartbeat.cancel()

    async def _keep(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await delivery.in_progress()

    async def _build(self, command: BuildImage, delivery: Delivery) -> None:
        began = self._clock.now()
        lines = BuildLog(self._bus, self._clock, command.image, self.name)
        spans = BuildSpans(command)
        self._engine.takes_files_of(command.workspace)
        try:
            built = await self._engine.build(
                command.spec,
                lines.add,
                self._secrets_of(command),
                spans.add,
                self._engine.volumes(
                    command.workspace, lambda: tokens.of_workspace(self._bus, self._clock, command.workspace)
                ),
                missed=command.lost,
            )
        except BusError:
            raise
        except SquallError as error:
            await self._answer_failed(command, delivery, lines, error)
        except BREAKDOWNS as error:
            await self._broke_down(command, delivery, lines, error)
        else:
            await self._answer_ready(command, delivery, lines, built, began)
        finally:
            spans.send(self._bus, int(began * 1e9), int(self._clock.now() * 1e9))

    def _secrets_of(self, command: BuildImage) -> Secrets:
        """Opens references of the workspace that asks, and of no other."""

        async def opened(references: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
            try:
                wanted = [from_wire(SecretRef, dict(reference)) for reference in references]
            except (TypeError, ValueError, LookupError, InvalidError) as error:
                raise ImageBuildError(f"a build step names its secrets in a way that is not known: {error}") from error
            values, _ = await self._secrets.of(wanted, command.workspace)
            return values

        return opened

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
            manifest=built.manifest,
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

    async def _known(self, image: str) -> tuple[Known, int]:
        # A copy that lags behind may still say that an image is there which was withdrawn.
        entry = await self._images.get(image, from_leader=True)
        if entry is None:
            return Known(), (await self._images.revision(image))[0]
        record = ImageRecord.decode(entry.value)
        removed_until = record.updated_at + REMOVING_S if record.state == REMOVING else 0.0
        known = Known(
            state=record.state, updated_at=record.updated_at, removed_until=removed_until, manifest=record.manifest
        )
        return known, entry.revision
