"""Pruning at the gateway: what something needs stays, whoever publishes meanwhile loses nothing. The builder is the
test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.services.gateway.test_images import Builder, an_image, ensure
from tests.services.gateway.world import World, a_function

from squall.http_api.routes import Route
from squall.spec import ImageSpec, to_wire
from squall_bus import Message
from squall_contracts import subjects
from squall_contracts.builds import IMAGES, BuildImage, ImageRecord, PruneAnswer, PruneImages, image_asked_key

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


class Store:
    """A builder's side of pruning: does to records what a builder does, and notes what it was told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.heard: list[PruneImages] = []
        self.meanwhile: Callable[[], Awaitable[None]] = self._nothing
        """Called when images have just been withdrawn."""

    async def _nothing(self) -> None: ...

    async def on_command(self, message: Message) -> None:
        command = PruneImages.decode(message.data)
        self.heard.append(command)
        answer = PruneAnswer(builder="bu-1", images=len(command.images), layers=1, bytes=1 << 20)
        self.world.bus.send(command.reply_to, replace(answer, done=False).encode())
        bucket = self.world.bus.kv(IMAGES)
        if command.step == "withdraw":
            for image in command.images:
                entry = await bucket.get(image)
                assert entry is not None
                await bucket.put(image, replace(ImageRecord.decode(entry.value), state="withdrawn").encode())
            try:
                await self.meanwhile()
                answer = replace(answer, withdrawn=command.images)
            except OSError as error:
                answer = PruneAnswer(builder="bu-1", error=str(error))
        self.world.bus.send(command.reply_to, answer.encode())

    def told(self, step: str) -> list[str]:
        return sorted(image for command in self.heard if command.step == step for image in command.images)


@asynccontextmanager
async def a_store(world: World) -> AsyncIterator[Store]:
    store = Store(world)
    listening = await world.bus.subscribe(subjects.prune("local"), store.on_command)
    try:
        yield store
    finally:
        await listening.close()


async def prune(world: World, **wanted: Any) -> dict[str, Any]:
    answer = await world.http.post("/v1/images/prune", json={"older_than_s": 60.0, **wanted})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_what_nothing_needs_is_removed_and_all_else_stays(world: World) -> None:
    kinds = ("deployed", "stopped", "named", "building", "nothing", "fresh", "theirs", "asked")
    images = {kind: an_image(f"prune-{kind}") for kind in kinds}
    now = time.time()
    for kind, image in images.items():
        state = "building" if kind == "building" else "ready"
        at = now if kind == "fresh" else 1.0
        workspace = "somebody-else" if kind == "theirs" else "main"
        await Builder(world, image).answers(state=state, updated_at=at, workspace=workspace, spec=image)
    assert await ensure(world, images["asked"]) == [{"image": images["asked"].id}]
    named = await world.http.put("/v1/image-names/kept:1", json={"image": images["named"].id})
    assert named.status_code == 200, named.text
    await world.publish(a_function("one", image=images["deployed"]), mode="deployed", name="prune-kept")
    stopped = await world.publish(a_function("one", image=images["stopped"]), mode="deployed", name="prune-stopped")
    assert (await world.http.post(f"/v1/apps/{stopped['app_id']}/stop", json={})).status_code == 200
    ours = {image.id for image in images.values()}
    gone = sorted((images["nothing"].id, images["stopped"].id))

    async with a_store(world) as store:
        would = await prune(world, dry_run=True)
        assert sorted(ours & set(would["images"])) == gone
        assert [command.step for command in store.heard] == ["look"]
        assert would["stores"][0] | {"name": ""} == would["stores"][0] | {"kind": "builder", "name": ""}

        removed = await prune(world)
        assert sorted(ours & set(removed["images"])) == gone
        assert sorted(ours & set(store.told("remove"))) == gone
        assert removed["stores"][0]["bytes"] == 1 << 20
    listed = {row["image"] for row in (await world.http.get("/v1/images")).json()["images"]}
    assert not listed & set(gone)


async def test_what_was_asked_for_again_is_not_old(world: World) -> None:
    image = an_image("prune-asked-often")
    await Builder(world, image).answers(state="ready", updated_at=1.0, workspace="main", spec=image)
    await world.bus.kv(IMAGES).put(image_asked_key(image.id), str(time.time() - 3000).encode())
    assert await ensure(world, image) == [{"image": image.id}]
    async with a_store(world):
        assert image.id not in (await prune(world, dry_run=True, older_than_s=2000.0))["images"]


async def test_what_is_published_while_it_is_withdrawn_is_built_again(world: World) -> None:
    late, later, unneeded = (an_image(f"prune-{name}") for name in ("late", "later", "unneeded"))
    for image in (late, later, unneeded):
        await Builder(world, image).answers(state="ready", updated_at=1.0, workspace="main", spec=image)
    refused: list[int] = []

    async def meanwhile() -> None:
        # Who was told before that the image is there publishes now: refused, but its version is written.
        body = await app_body(late)
        refused.append((await world.http.post("/v1/apps", json=body)).status_code)
        refused.append((await world.http.put("/v1/image-names/x:1", json={"image": later.id})).status_code)

    async with a_store(world) as store:
        store.meanwhile = meanwhile
        async with asyncio.TaskGroup() as tasks:
            pruning = tasks.create_task(prune(world))
            asked = await Builder(world, late).asked()
        assert asked.spec == late
    assert refused == [409, 404]
    assert late.id not in pruning.result()["images"]
    assert late.id not in store.told("remove")
    assert unneeded.id in store.told("remove")
    assert (await world.http.get("/v1/image-names/x:1")).status_code == 404


async def app_body(image: ImageSpec) -> dict[str, Any]:
    return {"name": "prune-late", "mode": "deployed", "functions": [to_wire(a_function("one", image=image))]}


async def test_what_was_removed_is_told_once_and_to_nobody_else(world: World) -> None:
    gone = an_image("prune-told-once")
    # As builders write it; older ones did not say whose it was.
    for workspace in ("main", ""):
        await Builder(world, gone).answers(state="removed", updated_at=1.0, workspace=workspace)
        async with a_store(world) as store:
            assert gone.id not in (await prune(world, dry_run=True))["images"]
            assert gone.id not in (await prune(world))["images"]
        assert gone.id not in store.told("withdraw")


async def test_what_is_asked_for_while_it_is_restored_is_built_once(world: World) -> None:
    late = an_image("prune-asked-again")
    await Builder(world, late).answers(state="ready", updated_at=1.0, workspace="main", spec=late)

    async def meanwhile() -> None:
        body = {"name": "prune-again", "mode": "deployed", "functions": [to_wire(a_function("one", image=late))]}
        assert (await world.http.post("/v1/apps", json=body)).status_code == 409
        command = BuildImage(image=late.id, spec=late, requested_at=time.time(), workspace="main")
        await world.bus.publish(subjects.build("local", late.id), command.encode())

    async with a_store(world) as store:
        store.meanwhile = meanwhile
        assert late.id not in (await prune(world))["images"]
    assert (await Builder(world, late).asked()).spec == late


async def test_a_builder_that_fails_half_way_leaves_nothing_withdrawn_that_is_needed(world: World) -> None:
    late, before = an_image("prune-half-way"), an_image("prune-broken-off")
    await Builder(world, late).answers(state="ready", updated_at=1.0, workspace="main", spec=late)
    # A gateway ended between the two looks of an earlier prune.
    await world.publish(a_function("one", image=before), mode="deployed", name="prune-broken-off")
    await Builder(world, before).answers(state="withdrawn", updated_at=1.0, workspace="main", spec=before)

    async def meanwhile() -> None:
        body = {"name": "prune-half", "mode": "deployed", "functions": [to_wire(a_function("one", image=late))]}
        assert (await world.http.post("/v1/apps", json=body)).status_code == 409
        raise OSError(28, "No space left on device")

    async with a_store(world) as store:
        store.meanwhile = meanwhile
        async with asyncio.TaskGroup() as tasks:
            pruning = tasks.create_task(prune(world))
            assert (await Builder(world, before).asked()).spec == before
            assert (await Builder(world, late).asked()).spec == late
    assert "No space left" in pruning.result()["stores"][0]["error"]


async def test_a_version_whose_image_was_pruned_is_not_rolled_back_to(world: World) -> None:
    old, new = an_image("prune-old"), an_image("prune-new")
    for image in (old, new):
        await Builder(world, image).answers(state="ready", updated_at=1.0, workspace="main", spec=image)
    app = await world.publish(a_function("one", image=old), mode="deployed", name="prune-back")
    assert (await world.http.post(f"/v1/apps/{app['app_id']}/stop", json={})).status_code == 200
    await Builder(world, old).answers(state="removed", updated_at=time.time(), workspace="main")
    await world.publish(a_function("one", image=new), mode="deployed", name="prune-back")
    route = Route.APP_ROLLBACK.format(app="prune-back")
    refused = await world.http.post(route, json={"version": 1})
    assert refused.status_code == 409, refused.text
    assert "was pruned" in refused.text
    assert (await Builder(world, old).asked()).spec == old
    await Builder(world, old).answers(state="ready", updated_at=time.time(), workspace="main", spec=old)
    assert (await world.http.post(route, json={"version": 1})).status_code == 200


async def test_without_a_builder_nothing_is_removed(world: World) -> None:
    image = an_image("prune-alone")
    await Builder(world, image).answers(state="ready", updated_at=1.0, workspace="main", spec=image)
    answer = await world.http.post("/v1/images/prune", json={"older_than_s": 60.0})
    assert answer.status_code == 503, answer.text
    assert "no builder answers" in answer.text
    assert (await world.http.get(f"/v1/images/{image.id}")).status_code == 200
    assert (await world.http.post("/v1/images/prune", json={"older_than_s": -1})).status_code == 400
