"""Pruning: finds images that nothing needs, and has builders and nodes remove them.

Nothing is lost to a race. An image is withdrawn first; from then on whoever asks for it has it built again, and whoever
publishes a function with it is refused. Only then it is looked once more what is needed, and what is needed now is
built again before anything was removed of it. What a build uses meanwhile is kept by the folder of layers itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from squall.errors import ConflictError, ServiceError, SquallError
from squall.http_api.images import PrunedImages, PrunedStore
from squall_bus import Bus, Message
from squall_contracts import subjects
from squall_contracts.builds import (
    FAILED,
    GONE,
    IMAGE_NAMES,
    IMAGES,
    READY,
    REMOVING,
    WITHDRAWN,
    ImageNameRecord,
    ImageRecord,
    PruneAnswer,
    PruneImages,
    PruneStep,
    image_asked_key,
)
from squall_contracts.functions import APPS, SPECS, AppRecord, FunctionRecord, PoolRecord, pool_key
from squall_contracts.nodes import Command, NodeCommand
from squall_gateway.commands import ANSWER_S, NodeCommands, next_answer
from squall_gateway.fleet import Fleet
from squall_gateway.image_records import ImageRecords
from squall_gateway.images import ask_for
from squall_gateway.policy.pruning import AppView, InUse, VersionView, needed
from squall_service.clock import Clock

BEGUN_S = 1.0
"""Builders that are there say so at once."""
ENDED_S = 300.0
"""Longest that removing may take."""
SETTLED_S = 2.0
"""Copies of buckets are a few milliseconds behind their leader; what was written before is seen after this time."""
BATCH = 5000
"""Images in one command, so that it fits into a message."""
_POOLS, _APP_NAMES = pool_key(""), "name."


@dataclass(frozen=True, slots=True)
class Pruning:
    """Decides what is not needed; builders and nodes do the rest."""

    bus: Bus
    clock: Clock
    records: ImageRecords
    fleet: Fleet
    commands: NodeCommands
    settled_s: float = SETTLED_S

    async def prune(self, workspace: str, *, older_than_s: float, dry_run: bool) -> PrunedImages:
        """Remove images of the workspace that nothing needs, and that nobody asked for since. Raises `ServiceError`."""
        since = self.clock.now() - older_than_s
        old = await self._old(workspace, since)
        kept = await self._needed()
        if not dry_run:
            await self._restore(kept.intersection(old))  # an earlier prune was broken off
        images = sorted(old - kept)[:BATCH]
        if not images:
            return PrunedImages(dry_run=dry_run)
        if dry_run:
            builders = await self._ask(PruneStep.LOOK, images, since)
        else:
            builders = await self._ask(PruneStep.WITHDRAW, images, since)
            images = await self._still_unneeded(images, {image for answer in builders for image in answer.withdrawn})
            if images:
                builders = await self._ask(PruneStep.REMOVE, images, since)
        nodes = await self._ask_nodes(images, since, dry_run) if images else []
        if not dry_run:
            for image in images:
                await self.bus.kv(IMAGES).delete(image_asked_key(image))
        return PrunedImages(images=tuple(images), stores=(*map(_store, builders), *nodes), dry_run=dry_run)

    async def _old(self, workspace: str, since: float) -> set[str]:
        """Images that nobody asked for since, and those that a prune which was broken off has withdrawn."""
        entries = await self.bus.kv(IMAGES).entries(image_asked_key(""))
        asked = {entry.key: float(entry.value) for entry in entries}
        return {
            record.image
            for record in await self.records.of_workspace(workspace)
            if record.state in (WITHDRAWN, REMOVING)
            or (
                record.state in (READY, FAILED)
                and max(record.updated_at, asked.get(image_asked_key(record.image), 0.0)) <= since
            )
        }

    async def _still_unneeded(self, images: Collection[str], withdrawn: Collection[str]) -> list[str]:
        """Nobody can get what was withdrawn any more; what somebody published just before is built again. That may be
        any of `images`: a builder that broke down has not said which it withdrew."""
        await self.clock.sleep(self.settled_s)
        kept = await self._needed()
        await self._restore(kept.intersection(images))
        return sorted(set(withdrawn) - kept)

    async def _restore(self, images: Iterable[str]) -> None:
        """Somebody published these while they were withdrawn: nothing of them is removed yet, so they are there at
        once."""
        for image in images:
            entry = await self.bus.kv(IMAGES).get(image, from_leader=True)
            record = None if entry is None else ImageRecord.decode(entry.value)
            if record is not None and record.state in GONE and record.spec is not None:
                await ask_for(self.bus, record.spec, record.workspace, self.clock.now())

    async def _needed(self) -> frozenset[str]:
        """As of now, of all workspaces: equal images are one."""
        specs = await self.bus.kv(SPECS).entries()
        apps = [entry for entry in await self.bus.kv(APPS).entries() if not entry.key.startswith(_APP_NAMES)]
        names = await self.bus.kv(IMAGES).entries(IMAGE_NAMES)
        pools = [PoolRecord.decode(entry.value) for entry in specs if entry.key.startswith(_POOLS)]
        functions = [FunctionRecord.decode(entry.value) for entry in specs if not entry.key.startswith(_POOLS)]
        found = InUse(
            apps={app.app_id: _app(app) for app in (AppRecord.decode(entry.value) for entry in apps)},
            versions=[_version(function) for function in functions],
            pooled={pool.function_id for pool in pools},
            named={ImageNameRecord.decode(entry.value).image for entry in names},
        )
        return needed(found, self.clock.now())

    # ------------------------------------------------------------------ whom it asks

    async def _ask(self, step: str, images: Sequence[str], since: float) -> list[PruneAnswer]:
        """Every builder that is there. Raises `ServiceError` if none is, or if one does not come to an end."""
        found: asyncio.Queue[PruneAnswer] = asyncio.Queue()

        def on_answer(message: Message) -> None:
            found.put_nowait(PruneAnswer.decode(message.data))

        inbox = self.bus.new_inbox()
        listening = await self.bus.subscribe(inbox, on_answer)
        try:
            command = PruneImages(reply_to=inbox, step=step, images=tuple(images), since=since)
            self.bus.send(subjects.prune(self.bus.topology.region), command.encode())
            return await _gathered(found)
        finally:
            await listening.close()

    async def _ask_nodes(self, images: Sequence[str], since: float, dry_run: bool) -> list[PrunedStore]:
        command = NodeCommand(Command.PRUNE_IMAGES, "", images=list(images), since=since, dry_run=dry_run)

        async def ask(node: str) -> PrunedStore:
            try:
                async with self.commands.asking(node, command) as answers:
                    answer = await next_answer(answers, node, ENDED_S)
            except SquallError as error:
                return PrunedStore(kind="node", name=node, error=error.message)
            return PrunedStore(
                kind="node",
                name=node,
                images=answer.images,
                layers=answer.layers,
                bytes=answer.bytes,
                kept_bytes=answer.kept_bytes,
            )

        nodes = sorted(fact.node for fact in await self.fleet.nodes())
        return list(await asyncio.gather(*map(ask, nodes)))


async def check_images(records: ImageRecords, images: Iterable[str]) -> None:
    """After the versions that need them are written, and before an app has them. Raises `ConflictError` if one was
    withdrawn meanwhile: pruning did not see that something needs it."""
    for image in images:
        if await records.is_gone(image):
            raise ConflictError(
                f"image {image} was removed by `squall image prune` while the app was published",
                fix="Publish the app again: it is built again, most of it from what is still there.",
            )


async def _gathered(found: asyncio.Queue[PruneAnswer]) -> list[PruneAnswer]:
    """The last word of every builder that began. Raises `ServiceError` if none did."""
    begun: set[str] = set()
    ended: dict[str, PruneAnswer] = {}
    start = asyncio.get_running_loop().time()
    while True:
        within_s = ANSWER_S if not begun else ENDED_S if begun - set(ended) else BEGUN_S
        try:
            async with asyncio.timeout_at(start + within_s):
                answer = await found.get()
        except TimeoutError:
            break
        begun.add(answer.builder)
        if answer.done:
            ended[answer.builder] = answer
    if not begun:
        raise ServiceError("no builder answers", fix="Look whether one runs: images are theirs.")
    late = begun - set(ended)
    return [*ended.values(), *(PruneAnswer(builder=name, error=f"not done within {ENDED_S:g} s") for name in late)]


def _store(answer: PruneAnswer) -> PrunedStore:
    return PrunedStore(
        kind="builder",
        name=answer.builder,
        images=answer.images,
        layers=answer.layers,
        bytes=answer.bytes,
        kept_bytes=answer.kept_bytes,
        in_registry=answer.in_registry,
        error=answer.error,
    )


def _app(app: AppRecord) -> AppView:
    remembered = {function for line in app.history for function in line.functions.values()}
    functions = remembered | set(app.functions.values())
    return AppView(stopped=app.state == "stopped", version=app.version, functions=functions)


def _version(function: FunctionRecord) -> VersionView:
    return VersionView(
        function_id=function.function_id,
        published_id=function.published_id,
        app_id=function.app_id,
        version=function.version,
        image=function.spec.image.id,
        created_at=function.created_at,
    )
