"""Blocks that no version needs are removed; whatever happens in between, none that is needed is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
import pytest_asyncio
from tests.services.gateway.world import World, a_world, error_of
from tests.support.s3_server import KEYS, S3Server

from squall.errors import ConflictError, DataLossError, InvalidError, ServiceError
from squall.http_api.storage import CollectedBlocks, CommitVolume, VolumeChange, VolumeFile
from squall_contracts.volumes import STORE_USER, VOLUMES, VolumeHead, condemned_key, volume_key
from squall_gateway.auth import create_token
from squall_gateway.blobs import RESERVE_BYTES, Blobs
from squall_gateway.collecting import Collector
from squall_gateway.policy.volumes import Files
from squall_gateway.volume_blocks import Block, Room, Rooms
from squall_gateway.volumes import Volumes
from squall_service.clock import SystemClock

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
Step = Callable[[], Awaitable[object]]


class Store:
    """A world, and what another gateway on the same store would have."""

    def __init__(self, world: World, where: str, options: dict[str, str]) -> None:
        self.world = world
        self._made = 0
        self._where, self._options = where, options

    def rooms(self, grace_s: float = 0.0) -> Rooms:
        shared = Blobs(self._where, self._options, 1 << 30, reserve_bytes=RESERVE_BYTES)
        return Rooms(shared, self.world.bus, SystemClock(), grace_s)

    def collector(self, grace_s: float = 0.0, **at: Step) -> Interrupted:
        """Another gateway's; `at` is what happens at a step of it, once."""
        collector = Interrupted(self.world.bus, self.rooms(grace_s), SystemClock())
        collector.at.update(at)
        collector.watch(collector.rooms.of("main"))
        return collector

    async def volume(self) -> str:
        self._made += 1
        body = {"name": f"v{self._made}", "environment": "main"}
        return str((await self.world.http.post("/v1/objects/volumes", json=body)).json()["id"])

    async def block(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        stored = await self.world.http.put(f"/v1/volume-blocks/{sha256}", content=content)
        assert stored.is_success, stored.text
        return sha256

    async def commit(self, volume: str, path: str, sha256: str, size: int) -> int:
        body = {"changes": [{"what": "write", "path": path, "file": file(path, sha256, size)}]}
        return (await self.world.http.post(f"/v1/volumes/{volume}/commits", json=body)).status_code

    async def content(self, sha256: str) -> bytes | None:
        answer = await self.world.http.get(f"/v1/volume-blocks/{sha256}")
        return answer.content if answer.is_success else None

    async def dedupe(self, sha256: str) -> bool:
        return (await self.world.http.head(f"/v1/volume-blocks/{sha256}")).is_success

    async def head(self, volume: str) -> VolumeHead:
        entry = await self.world.bus.kv(VOLUMES).get(volume_key("main", volume), from_leader=True)
        assert entry is not None
        return VolumeHead.decode(entry.value)


class Interrupted(Collector):
    """A collector in whose steps something happens."""

    at: dict[str, Step] = {}  # noqa: RUF012  # replaced below: the dataclass has slots, this class has not

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        object.__setattr__(self, "at", {})

    async def happens(self, step: str) -> None:
        if step in self.at:
            await self.at.pop(step)()

    def watch(self, room: Room) -> None:
        store, remove, stat = room.store, room.store.remove, room.store.stat

        async def looked(sha256: str) -> Block | None:
            found = await stat(sha256)
            await self.happens(f"looked at {sha256}")
            return found

        async def watched(sha256: str) -> None:
            await self.happens("removing")
            await remove(sha256)

        store.remove, store.stat = watched, looked  # type: ignore[method-assign]

    async def _head_keys(self, room: Room, revision: int, deadline: float) -> list[str]:
        await self.happens("condemned")
        return await super()._head_keys(room, revision, deadline)


def file(path: str, sha256: str, size: int) -> dict[str, Any]:
    return {"path": path, "size": size, "mtime": 1.0, "mode": 0o644, "blocks": [sha256]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    place = tmp_path_factory.mktemp("folder")
    async with a_world(place, volume_grace_s=0.0) as world:
        yield Store(world, str(place / "blobs"), {})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bucket(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    place = tmp_path_factory.mktemp("bucket")
    with S3Server(place / "s3") as s3:
        s3.make("blobs")
        options = {"endpoint": s3.url, "region": "us-east-1"} | {k.lower(): v for k, v in KEYS.items()}
        async with a_world(place, blobs="s3://blobs/here", blob_options=options, volume_grace_s=0.0) as world:
            yield Store(world, "s3://blobs/here", options)


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


async def test_blocks_of_replaced_and_removed_files_and_of_deleted_volumes_go(store: Store) -> None:
    volume, gone = await store.volume(), await store.volume()
    names = [await store.block(content) for content in (b"replaced", b"stays", b"of a deleted volume")]
    assert await store.commit(volume, "a", names[0], 8) == 200
    assert await store.commit(gone, "b", names[2], 19) == 200
    first_list = (await store.head(volume)).manifest.partition(":")[0]
    assert await store.commit(volume, "a", names[1], 5) == 200
    assert (await store.world.http.delete(f"/v1/objects/volumes/v{store._made}")).is_success

    would = await store.collector().collect("main", dry_run=True)
    assert (would.removed, would.needed) == (4, 2), "two blocks, and the lists of their versions"
    assert await store.content(names[0]) == b"replaced"
    answer = await store.world.http.post("/v1/volume-collections", json={})
    assert CollectedBlocks(**answer.json()).removed == 4, answer.text

    assert [await store.content(name) for name in (*names, first_list)] == [None, b"stays", None, None]
    assert len(await store.rooms().of("main").store.all()) == 2, "the block and the list that are needed"


async def test_a_commit_that_has_seen_a_block_before_it_was_removed_does_not_land(store: Store) -> None:
    volume, sha256 = await store.volume(), await store.block(b"seen, then removed")
    volumes = slow_commit(store, lambda: store.collector().collect("main", dry_run=False))
    with pytest.raises(InvalidError, match="is not there"):
        await volumes.commit("main", volume, wanted(sha256, 18))
    assert (await store.head(volume)).version == 0
    await store.block(b"seen, then removed")
    assert await store.commit(volume, "a", sha256, 18) == 200
    assert await store.content(sha256) == b"seen, then removed"


async def test_a_commit_that_lands_while_its_block_is_condemned_keeps_it(store: Store) -> None:
    volume, sha256 = await store.volume(), await store.block(b"condemned, then needed")
    condemned, landed = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        condemned.set()
        await landed.wait()

    collector = store.collector(condemned=pause)
    async with asyncio.TaskGroup() as group:
        collecting: list[asyncio.Task[CollectedBlocks]] = []

        async def collect() -> None:
            collecting.append(group.create_task(collector.collect("main", dry_run=False)))
            await asyncio.wait_for(condemned.wait(), 60)

        await slow_commit(store, collect).commit("main", volume, wanted(sha256, 22))
        landed.set()
    assert collecting[0].result().is_complete
    assert await store.content(sha256) == b"condemned, then needed"


async def test_what_is_condemned_is_not_there_for_anybody_and_can_be_stored_again(store: Store) -> None:
    volume, sha256 = await store.volume(), await store.block(b"condemned")
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await store.dedupe(sha256))
        seen.append(await store.commit(volume, "a", sha256, 9))

    await store.collector(removing=look).collect("main", dry_run=False)
    assert seen == [False, 503]
    assert (await store.head(volume)).version == 0
    await store.block(b"condemned")
    assert await store.commit(volume, "a", sha256, 9) == 200


async def test_who_stores_a_block_again_while_it_is_removed_is_not_told_that_it_is_there(store: Store) -> None:
    sha256 = await store.block(b"stored again")
    rooms = store.rooms()
    storing: list[asyncio.Task[int]] = []
    async with asyncio.TaskGroup() as group:

        async def store_again() -> None:
            room, stored = rooms.of("main"), asyncio.Event()
            look = room.condemned

            async def looked() -> frozenset[str]:
                found = await look()
                stored.set()
                return found

            room.condemned = looked  # type: ignore[method-assign]

            async def put() -> int:
                try:
                    return await room.put(sha256, pieces(b"stored again"))
                except Exception as error:  # noqa: BLE001  # told below
                    return 503 if "being removed" in str(error) else 0
                finally:
                    stored.set()

            storing.append(group.create_task(put()))
            await asyncio.wait_for(stored.wait(), 60)  # it is stored, and has seen that it is condemned

        await store.collector(removing=store_again).collect("main", dry_run=False)
    assert storing[0].result() == 503
    assert await store.content(sha256) is None


@pytest.mark.parametrize("asks", [False, True])
async def test_who_stores_or_asks_just_before_a_removal_and_looks_after_it_is_not_told_that_it_is_there(
    store: Store, asks: bool
) -> None:
    content = b"stored again and removed, %d" % asks
    sha256 = await store.block(content)
    room, stored, removed = store.rooms().of("main"), asyncio.Event(), asyncio.Event()
    put, renew = room.store.put, room.store.renew

    async def then_wait(result: Any) -> Any:
        stored.set()
        await asyncio.wait_for(removed.wait(), 60)
        return result

    async def slow_put(sha256: str, chunks: AsyncIterator[bytes]) -> Any:
        return await then_wait(await put(sha256, chunks))

    async def slow_renew(sha256: str) -> Any:
        return await then_wait(await renew(sha256))

    async def relies() -> bool:
        """As a client would."""
        if asks:
            room.store.renew = slow_renew  # type: ignore[method-assign]
            return await room.offered(sha256) is not None
        room.store.put = slow_put  # type: ignore[method-assign]
        try:
            return await room.put(sha256, pieces(content)) > 0
        except ServiceError:
            return False

    async with asyncio.TaskGroup() as group:
        relying: list[asyncio.Task[bool]] = []

        async def again() -> None:
            relying.append(group.create_task(relies()))
            await asyncio.wait_for(stored.wait(), 60)

        collector = store.collector()
        collector.at[f"looked at {sha256}"] = again
        assert (await collector.collect("main", dry_run=False)).is_complete
        removed.set()
    assert await store.content(sha256) is None
    assert relying[0].result() is False


async def test_what_is_condemned_no_more_is_not_removed(store: Store) -> None:
    """The bus's clock was put forward, or the collector's machine stood still and does not know."""
    volume, sha256 = await store.volume(), await store.block(b"not condemned any more")

    async def expires() -> None:
        await store.world.bus.kv(VOLUMES).delete(condemned_key("main"))
        await store.block(b"not condemned any more")
        assert await store.commit(volume, "a", sha256, 22) == 200

    collector = store.collector()
    collector.at[f"looked at {sha256}"] = expires
    assert not (await collector.collect("main", dry_run=False)).is_complete
    assert await store.content(sha256) == b"not condemned any more"


async def test_of_two_collectors_one_works_and_of_a_dead_one_nothing_is_lost(store: Store) -> None:
    sha256, kept = await store.block(b"two collectors"), await store.block(b"needed")
    volume = await store.volume()
    assert await store.commit(volume, "a", kept, 6) == 200
    others: list[CollectedBlocks] = []

    async def die() -> None:
        others.append(await store.collector().collect("main", dry_run=False))
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        await store.collector(removing=die).collect("main", dry_run=False)
    assert (others[0].removed, others[0].is_complete) == (0, False)
    assert not await store.dedupe(sha256), "a removal that was under way could still happen"
    await store.world.bus.kv(VOLUMES).delete(condemned_key("main"))  # as it expires
    assert (await store.collector().collect("main", dry_run=False)).is_complete
    assert [await store.content(name) for name in (sha256, kept)] == [None, b"needed"]


async def test_a_store_that_another_bus_uses_is_left_alone(store: Store) -> None:
    sha256 = await store.block(b"of whom?")
    blocks = store.rooms().of("main").store
    await blocks.say_used_by("another")
    try:
        with pytest.raises(ConflictError, match="another bus"):
            await store.collector().collect("main", dry_run=False)
        await store.collector().tick()
        assert await store.content(sha256) == b"of whom?"
    finally:
        await obstore.delete_async(blocks._store, "users/another")
    await store.collector().tick()
    assert await store.content(sha256) is None


async def test_a_bus_that_loses_its_data_under_a_running_gateway_is_another_bus(folder: Store) -> None:
    sha256, collector = await folder.block(b"of the bus before"), folder.collector()
    room, bucket = collector.rooms.of("main"), folder.world.bus.kv(VOLUMES)
    before = await room.user()
    await bucket.delete(STORE_USER)
    try:
        with pytest.raises(ConflictError, match="another bus"):
            await collector.collect("main", dry_run=False)
        assert await folder.content(sha256) == b"of the bus before"
        assert await room.user() != before
    finally:
        await obstore.delete_async(room.store._store, f"users/{await room.user()}")
        await bucket.put(STORE_USER, before.encode())


async def test_a_damaged_list_costs_no_block(folder: Store) -> None:
    volume, sha256 = await folder.volume(), await folder.block(b"in a damaged list")
    assert await folder.commit(volume, "a", sha256, 17) == 200
    listed = (await folder.head(volume)).manifest.partition(":")[0]
    place = folder.world.folder / "blobs" / "volumes" / "main" / listed[:2] / listed
    whole = place.read_bytes()
    place.write_bytes(whole.replace(sha256.encode(), sha256[::-1].encode()))
    try:
        with pytest.raises(DataLossError):
            await folder.collector().collect("main", dry_run=False)
        assert await folder.content(sha256) == b"in a damaged list"
    finally:
        place.write_bytes(whole)


async def test_readers_of_an_older_version_have_the_grace_period(folder: Store) -> None:
    volume = await folder.volume()
    names = [await folder.block(content) for content in (b"older", b"newer")]
    assert await folder.commit(volume, "a", names[0], 5) == 200
    assert await folder.commit(volume, "a", names[1], 5) == 200
    place = folder.world.folder / "blobs" / "volumes" / "main"
    grow_old(place, names[0], 7200)

    done = await folder.collector(3600.0).collect("main", dry_run=False)
    assert done.removed == 0, "it is old, but nobody has seen before that no version needs it"
    notes = place / "notes" / "unneeded.json"
    unneeded = json.loads(notes.read_text())
    assert names[0] in unneeded
    notes.write_text(json.dumps({name: since - 7200 for name, since in unneeded.items()}))
    assert (await folder.collector(3600.0).collect("main", dry_run=False)).removed == 1
    assert [await folder.content(name) for name in names] == [None, b"newer"]


async def test_who_asks_whether_a_block_is_there_may_rely_on_the_answer(folder: Store) -> None:
    """Also how agents keep the lists of versions that containers have."""
    sha256 = await folder.block(b"asked for")
    place = folder.world.folder / "blobs" / "volumes" / "main"
    grow_old(place, sha256, 7200)
    (place / "notes").mkdir(exist_ok=True)
    (place / "notes" / "unneeded.json").write_text(json.dumps({sha256: time.time() - 7200}))
    assert (await folder.collector(3600.0).collect("main", dry_run=True)).removed == 1
    assert await folder.rooms(3600.0).of("main").offered(sha256) == 9
    done = await folder.collector(3600.0).collect("main", dry_run=False)
    assert done.removed == 0
    assert await folder.content(sha256) == b"asked for"


async def test_a_commit_makes_only_those_blocks_new_again_whose_time_is_nearly_over(folder: Store) -> None:
    sha256, room = await folder.block(b"uploaded half a day ago"), folder.rooms(3600.0).of("main")
    place = folder.world.folder / "blobs" / "volumes" / "main"
    renewed: list[str] = []
    renew = room.store.renew

    async def noted(name: str) -> bool:
        renewed.append(name)
        return await renew(name)

    room.store.renew = noted  # type: ignore[method-assign]
    grow_old(place, sha256, 2400)
    await room.require({sha256: 23}, {})
    assert renewed == []
    grow_old(place, sha256, 3400)
    await room.require({sha256: 23}, {})
    await room.require({sha256: 23}, {})
    assert renewed == [sha256]


async def test_a_block_of_another_workspace_cannot_be_had_by_its_name(folder: Store) -> None:
    secret = await folder.block(b"secret")
    token = await create_token(folder.world.bus, "others", "workspace", "others", now=1.0)
    others = await folder.world.client(str(folder.world.http.base_url), token)
    volume = (await others.post("/v1/objects/volumes", json={"name": "v", "environment": "main"})).json()["id"]
    body = {"changes": [{"what": "write", "path": "a", "file": file("a", secret, 6)}]}
    refused = await others.post(f"/v1/volumes/{volume}/commits", json=body)
    assert refused.status_code == 400, refused.text
    assert "is not there" in error_of(refused)["message"]
    assert (await others.get(f"/v1/volume-blocks/{secret}")).status_code == 404
    assert (await others.get(f"/v1/blobs/{secret}")).status_code == 404


async def test_versions_of_an_older_gateway_are_read_changed_and_kept(folder: Store) -> None:
    volume, content = await folder.volume(), b"from before"
    old, stray = hashlib.sha256(content).hexdigest(), hashlib.sha256(b"a payload").hexdigest()
    listed = json.dumps({"files": [file("old", old, 11)]}).encode()
    manifest = hashlib.sha256(listed).hexdigest()
    for name, body in ((old, content), (stray, b"a payload"), (manifest, listed)):
        place = folder.world.folder / "blobs" / name[:2]
        place.mkdir(exist_ok=True)
        (place / name).write_bytes(body)
    head = VolumeHead(volume, 1, f"{manifest}:{len(listed)}", 1, 11, 1.0)
    await folder.world.bus.kv(VOLUMES).put(volume_key("main", volume), head.encode())
    assert await folder.content(manifest) == listed
    assert await folder.commit(volume, "same", old, 11) == 200
    assert await folder.commit(volume, "payload", stray, 9) == 400, "only what the volume has already"
    await folder.collector().collect("main", dry_run=False)
    assert await folder.content(old) == content
    for name in (stray, hashlib.sha256(b"nothing").hexdigest()):
        answer = await folder.world.http.get(f"/v1/volume-blocks/{name}")
        told = error_of(answer)["message"].replace(name, "X")
        assert (answer.status_code, told) == (404, "there is no blob X"), "what lies there is not the volume's"


def slow_commit(store: Store, meanwhile: Step) -> Volumes:
    """Volumes of another gateway: between what the first commit has seen and its last step, this happens."""
    rooms = store.rooms()
    room = rooms.of("main")
    require, left = room.require, [meanwhile]

    async def slowly(sizes: dict[str, int], present: Files) -> None:
        await require(sizes, present)
        while left:
            await left.pop()()

    room.require = slowly  # type: ignore[method-assign, assignment]
    return Volumes(store.world.bus, rooms, SystemClock())


def wanted(sha256: str, size: int) -> CommitVolume:
    made = VolumeFile("a", size, 1.0, 0o644, (sha256,))
    return CommitVolume((VolumeChange("write", "a", made),))


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


def grow_old(place: Path, sha256: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(place / sha256[:2] / sha256, (then, then))
