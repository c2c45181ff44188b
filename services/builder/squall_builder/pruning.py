"""Images that nothing needs any more, as gateways find them: withdrawn first, so that whoever wants one from then on
has it built again, then removed. The record of an image decides; what lies on disks follows it.

The way of a record: ready or failed -> withdrawn -> removing -> removed. A build takes it from `withdrawn` and
`removed` at any time, from `removing` once that has taken too long. Every change is a compare-and-set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from squall.errors import InvalidError, SquallError
from squall_builder.engine import Engine
from squall_builder.handlers import Builder
from squall_builder.settings import BuilderSettings
from squall_bus import Bus, BusError, Message, Subscription, WrongRevision
from squall_contracts import subjects
from squall_contracts.builds import (
    FAILED,
    GONE,
    IMAGES,
    READY,
    REMOVED,
    REMOVED_S,
    REMOVING,
    REMOVING_S,
    WITHDRAWN,
    ImageRecord,
    PruneAnswer,
    PruneImages,
    PruneStep,
)
from squall_images.eviction import Freed, Unwanted
from squall_service.clock import Clock
from squall_service.run import ServiceContext
from squall_service.telemetry import log

NOTHING = Freed((), (), 0, 0)


@dataclass(frozen=True, slots=True)
class _Held:
    record: ImageRecord
    revision: int


class Pruner:
    """Does what gateways say about unneeded images."""

    def __init__(self, bus: Bus, clock: Clock, engine: Engine, builder: Builder) -> None:
        self._bus = bus
        self._clock = clock
        self._engine = engine
        self._builder = builder
        self._records = bus.kv(IMAGES)

    async def listen(self, context: ServiceContext[BuilderSettings]) -> Subscription:
        """From now on."""

        def on_message(message: Message) -> None:
            try:
                command = PruneImages.decode(message.data)
            except InvalidError as error:
                log.warning("prune_not_understood", reason=error.message)
            else:
                context.start(self.on_prune(command), "prune of images")

        return await self._bus.subscribe(subjects.prune(self._bus.topology.region), on_message)

    async def on_prune(self, command: PruneImages) -> None:
        """Do one step, and tell."""
        name = self._builder.name
        self._bus.send(command.reply_to, PruneAnswer(builder=name, done=False).encode())
        try:
            answer = await self._done(command)
        except (BusError, SquallError, OSError) as error:
            log.warning("images_not_pruned", step=command.step, reason=str(error))
            answer = PruneAnswer(builder=name, error=str(error))
        self._bus.send(command.reply_to, answer.encode())

    async def _done(self, command: PruneImages) -> PruneAnswer:
        self._engine.check_prunes()
        match command.step:
            case PruneStep.LOOK:
                unwanted = Unwanted(images=frozenset(command.images), since=command.since)
                return self._told(await self._engine.look(unwanted, self._clock.now()))
            case PruneStep.WITHDRAW:
                withdrawn = [image for image in command.images if await self._withdraw(image, command.since)]
                return PruneAnswer(builder=self._builder.name, withdrawn=tuple(withdrawn))
            case PruneStep.REMOVE:
                return await self._remove(command)
            case _:
                raise InvalidError(f"this builder's release does not know the step {command.step!r}")

    async def _withdraw(self, image: str, since: float) -> bool:
        """Whether it is withdrawn now. One that is built, or was since, is not."""
        found = await self._record(image)
        if found is None:
            return False
        if found.record.state in (READY, FAILED) and found.record.updated_at <= since:
            return await self._changed(found, WITHDRAWN) is not None
        return found.record.state in GONE

    async def _remove(self, command: PruneImages) -> PruneAnswer:
        ours = [image for image in command.images if image not in self._builder.building | self._builder.removing]
        self._builder.removing.update(ours)
        try:
            return await self._remove_these(ours, command.since)
        finally:
            self._builder.removing.difference_update(ours)

    async def _remove_these(self, images: Iterable[str], since: float) -> PruneAnswer:
        gone, taken, in_registry = set(), [], 0
        for image in images:
            found = await self._record(image)
            if found is not None and self._is_free(found.record):
                found = await self._changed(found, REMOVING)
                if found is not None:
                    taken.append(found)
                    in_registry += await self._engine.withdraw(image, found.record.manifest)
            if found is not None and found.record.state in GONE:
                gone.add(image)  # by us or by another builder; what lies here is needed by nobody
        freed = await self._engine.prune(Unwanted(images=gone, since=since), self._clock.now()) if gone else NOTHING
        for held in taken:
            await self._changed(held, REMOVED)  # unless somebody wants it again, and has it built
        log.info("images_pruned", images=len(taken), layers=len(freed.layers), bytes=freed.bytes)
        return replace(self._told(freed), in_registry=in_registry)

    def _is_free(self, record: ImageRecord) -> bool:
        """Whether no other builder removes it: one that was killed does no longer."""
        late = record.state == REMOVING and record.updated_at + REMOVING_S < self._clock.now()
        return record.state == WITHDRAWN or late

    async def _record(self, image: str) -> _Held | None:
        entry = await self._records.get(image, from_leader=True)
        return None if entry is None else _Held(ImageRecord.decode(entry.value), entry.revision)

    async def _changed(self, held: _Held, state: str) -> _Held | None:
        """The record in another state; None if somebody else has changed it."""
        record = replace(held.record, state=state, updated_at=self._clock.now())
        if state == REMOVED:
            record = ImageRecord(image=record.image, state=REMOVED, updated_at=record.updated_at)
        ttl_s = REMOVED_S if state == REMOVED else None
        try:
            return _Held(record, await self._records.update(record.image, record.encode(), held.revision, ttl_s))
        except WrongRevision:
            return None

    def _told(self, freed: Freed) -> PruneAnswer:
        return PruneAnswer(
            builder=self._builder.name,
            images=len(freed.images),
            layers=len(freed.layers),
            bytes=freed.bytes,
            kept_bytes=freed.kept_bytes,
        )
