"""Pruning at a builder: what nothing needs is withdrawn, then removed; whoever wants it meanwhile gets it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.services.builder.test_building import a_builder, record_of, request
from tests.support.eventually import eventually
from tests.support.layers import step

from squall.spec import ImageSpec
from squall_builder.handlers import Builder
from squall_builder.state import Known
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.builds import IMAGES, BuildImage, ImageRecord, PruneAnswer, PruneImages, PruneStep
from squall_images import eviction
from squall_images.chain import Configuration
from squall_images.eviction import Unwanted
from squall_images.layered import Description, LayerFolder
from squall_service.clock import SystemClock
from squall_service.sealing import Sealer

ONE, TWO = (ImageSpec("", (step("from_scratch"), step("env", variables={"A": name}))) for name in ("1", "2"))
WITHIN_S = 60


async def told(bus: Bus, what: str, *images: ImageSpec, since: float | None = None) -> PruneAnswer:
    """What the builder answers in the end."""
    answers: asyncio.Queue[PruneAnswer] = asyncio.Queue()
    inbox = bus.new_inbox()
    listening = await bus.subscribe(inbox, lambda message: answers.put_nowait(PruneAnswer.decode(message.data)))
    try:
        ids = tuple(image.id for image in images)
        command = PruneImages(reply_to=inbox, step=what, images=ids, since=time.time() if since is None else since)
        bus.send(subjects.prune("local"), command.encode())
        async with asyncio.timeout(WITHIN_S):
            while not (answer := await answers.get()).done:
                pass
        return answer
    finally:
        await listening.close()


async def built(bus: Bus, image: ImageSpec) -> ImageRecord:
    await request(bus, image)
    record = await eventually(lambda: record_of(bus, image, "ready"), within_s=WITHIN_S)
    assert record is not None
    return record


async def state_of(bus: Bus, image: ImageSpec) -> str:
    entry = await bus.kv(IMAGES).get(image.id)
    return "" if entry is None else ImageRecord.decode(entry.value).state


async def test_an_image_is_withdrawn_then_removed_and_built_again_for_whoever_wants_it(
    bus: Bus, tmp_path: Path
) -> None:
    folder = LayerFolder(tmp_path / "images")
    async with a_builder(bus, tmp_path, formats="layers"):
        await built(bus, ONE)
        await built(bus, TWO)
        assert (await told(bus, PruneStep.WITHDRAW, ONE, since=1.0)).withdrawn == (), "it was built since"
        would = await told(bus, PruneStep.LOOK, ONE)
        assert (would.images, folder.described(ONE.id) is not None) == (1, True)

        assert (await told(bus, PruneStep.WITHDRAW, ONE)).withdrawn == (ONE.id,)
        assert (await told(bus, PruneStep.WITHDRAW, ONE)).withdrawn == (ONE.id,), "said twice, done once"
        assert await state_of(bus, ONE) == "withdrawn"
        await built(bus, ONE)
        kept = await told(bus, PruneStep.REMOVE, ONE)
        assert (kept.images, await state_of(bus, ONE)) == (0, "ready"), "it is wanted again"

        await told(bus, PruneStep.WITHDRAW, ONE, TWO)
        assert (await told(bus, PruneStep.REMOVE, ONE)).images == 1
        assert (await state_of(bus, ONE), await state_of(bus, TWO)) == ("removed", "withdrawn")
        assert folder.described(ONE.id) is None
        assert folder.described(TWO.id) is not None
        await built(bus, ONE)
        assert folder.described(ONE.id) is not None


async def test_a_build_waits_for_the_end_of_a_removal_by_another_builder(bus: Bus, tmp_path: Path) -> None:
    async with a_builder(bus, tmp_path, formats="layers"):
        record = replace(await built(bus, ONE), state="removing", updated_at=time.time())
        revision = await bus.kv(IMAGES).put(ONE.id, record.encode())
        answer = await told(bus, PruneStep.REMOVE, ONE)
        assert answer.images == 1, "what lies here is needed by nobody either"
        await request(bus, ONE)
        found = await bus.kv(IMAGES).get(ONE.id)
        assert found is not None
        assert found.revision == revision, "it is not taken from the builder that removes it"
        await bus.kv(IMAGES).put(ONE.id, replace(record, state="removed").encode())
        assert await eventually(lambda: record_of(bus, ONE, "ready"), within_s=WITHIN_S)

        # A removal that was broken off is carried on.
        await bus.kv(IMAGES).put(ONE.id, replace(record, updated_at=1.0).encode())
        assert (await told(bus, PruneStep.REMOVE, ONE, since=time.time() + 1)).images == 1
        assert await state_of(bus, ONE) == "removed"


async def test_a_build_that_was_decided_on_before_a_removal_began_waits_for_its_end(bus: Bus, tmp_path: Path) -> None:
    """By another builder, between this one's look at the record and its first write."""
    handed_back: list[float] = []
    delivery: Any = SimpleNamespace(
        data=BuildImage(image=ONE.id, spec=ONE, requested_at=time.time(), workspace="main").encode(),
        subject=subjects.build("local", ONE.id),
        nak=handed_back.append,
    )
    withdrawn = ImageRecord(image=ONE.id, state="withdrawn", updated_at=1.0, spec=ONE, workspace="main")
    await bus.kv(IMAGES).put(ONE.id, withdrawn.encode())

    class Late(Builder):
        async def _known(self, image: str) -> tuple[Known, int]:
            found = await super()._known(image)
            removing = replace(withdrawn, state="removing", updated_at=time.time())
            await bus.kv(IMAGES).put(image, removing.encode())
            return found

    engine: Any = None  # it builds nothing
    await Late(bus, SystemClock(), engine, "bu-1", Sealer("")).on_build_requested(delivery)
    assert handed_back
    assert await state_of(bus, ONE) == "removing"


async def test_a_builder_of_environments_says_that_it_prunes_none(bus: Bus, tmp_path: Path) -> None:
    async with a_builder(bus, tmp_path):
        answer = await told(bus, PruneStep.WITHDRAW, ONE)
        assert "environments of plain processes" in answer.error


def described(folder: LayerFolder, image: str, *layers: str, used_at: float = 0.0) -> None:
    for key in layers:
        files = folder.layer(key)
        files.mkdir(parents=True, exist_ok=True)
        (files.parent / "layer.json").write_text(json.dumps({"bytes": 10}))
        os.utime(files.parent, (1.0, 1.0))
    found = Description(image_id=image, layers=layers, python=None, start=Configuration())
    folder.describe(found)
    os.utime(folder.images / f"{image}.json", (used_at, used_at))


@pytest.fixture
def folder(tmp_path: Path) -> LayerFolder:
    found = LayerFolder(tmp_path)
    found.open()
    return found


def pruned(folder: LayerFolder, *images: str, **more: Any) -> eviction.Freed:
    return eviction.sweep(folder, None, time.time(), unwanted=Unwanted(images=images, since=100.0), **more)


A, B, SHARED = ("a" * 32, "b" * 32, "c" * 32)


def test_only_what_no_other_image_needs_leaves_with_an_image(folder: LayerFolder) -> None:
    described(folder, "im-a", SHARED, A)
    described(folder, "im-b", SHARED, B)
    would = pruned(folder, "im-a", dry_run=True)
    assert (would.images, would.layers, would.bytes, would.kept_bytes) == (("im-a",), (A,), 10, 20)
    assert folder.has(A)
    assert pruned(folder, "im-a") == would
    assert (folder.has(A), folder.has(SHARED), folder.has(B)) == (False, True, True)
    assert folder.described("im-b") is not None


def test_what_runs_or_was_asked_for_since_stays(folder: LayerFolder) -> None:
    described(folder, "im-a", A)
    described(folder, "im-b", B, used_at=101.0)
    with eviction.pinned(folder, "im-a"):
        assert pruned(folder, "im-a", "im-b").images == ()
        assert pruned(folder, "im-a", "im-b", dry_run=True).images == ()
    assert pruned(folder, "im-a", "im-b").images == ("im-a",)
    assert folder.described("im-b") is not None


def test_a_layer_that_a_build_under_way_uses_again_stays(folder: LayerFolder) -> None:
    described(folder, "im-a", SHARED, A)
    assert folder.keep(SHARED), "a build found it, and goes on from it"
    freed = pruned(folder, "im-a")
    assert (freed.images, freed.layers) == (("im-a",), (A,))
    assert folder.has(SHARED)
