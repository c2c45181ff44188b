"""Batches staged in memory: the server follows the links, also after a crash; what memory loses is repeated."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.support.nats_server import NatsServer

from squall_bus import Bus, BusError, BusSettings, Published, Record, SubjectTaken, connect
from squall_contracts import topology
from squall_embedded.staging import LINK, Staging

STREAM = "RESULTS_local_00"
MESSAGES = Path("jetstream", "$G", "streams", STREAM, "msgs")
TOPOLOGY = topology.build(shards=1)
MANY = 40

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm here")


def records() -> list[Record]:
    return [Record(f"results.local.00.w.c.{n}", b"%d" % n * 50, None, f"c.{n}.1", 3600) for n in range(MANY)]


async def stored(bus: Bus) -> list[bytes]:
    return [record.data async for record in bus.read(STREAM, "results.>")]


def accepted(outcomes: list[Published | BusError]) -> bool:
    """As an agent sees it: stored now, before, or by an earlier attempt that got no answer."""
    return all(isinstance(outcome, Published | SubjectTaken) for outcome in outcomes)


async def test_batches_go_through_memory_and_the_records_to_the_disk(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "data", [STREAM])
    async with NatsServer(tmp_path) as server, connect(BusSettings(url=server.url), TOPOLOGY) as bus:
        await bus.ensure_topology()
        (tmp_path / "data").mkdir(exist_ok=True)
        staging.open()
        await staging.link()
        folder = (tmp_path / "data" / LINK).readlink()
        staged = (tmp_path / "data" / MESSAGES).parent / "batches"

        assert staged.readlink() == folder / STREAM
        assert accepted(await bus.publish_batch(records()))
        assert await stored(bus) == [record.data for record in records()]
        assert bus.stats.writes == 1

        await server.kill()
        await server.start()
        assert not staged.exists(), "the server makes its own folder when it starts"
        await staging.link()
        assert staged.readlink() == folder / STREAM
    staging.close()
    assert not folder.exists()


async def test_a_folder_in_use_is_linked_as_soon_as_it_is_empty(tmp_path: Path) -> None:
    staging = Staging(tmp_path, [STREAM])
    staged = (tmp_path / MESSAGES).parent / "batches"
    (staged / "a-batch").mkdir(parents=True)
    staging.open()

    async with asyncio.TaskGroup() as tasks:
        linking = tasks.create_task(staging.link())
        await asyncio.sleep(0)
        assert not linking.done()
        assert not staged.is_symlink()
        (staged / "a-batch").rmdir()

    assert staged.is_symlink()
    staging.close()


async def test_half_a_batch_whose_rest_was_lost_with_the_memory_is_completed_by_its_writer(tmp_path: Path) -> None:
    """Power fails while a batch is being stored: the writer has no acknowledgement and writes it again."""
    staging = Staging(tmp_path / "data", [STREAM])
    server = NatsServer(tmp_path)
    async with server:
        async with connect(BusSettings(url=server.url), TOPOLOGY) as bus:
            await bus.ensure_topology()
            staging.open()
            await staging.link()
            assert accepted(await bus.publish_batch(records()))
        await server.kill()
        block = tmp_path / "data" / MESSAGES / "1.blk"
        whole = block.read_bytes()
        block.write_bytes(whole[: whole.index(b"results.local.00.w.c.20") - 22])
        (block.parent / "index.db").unlink(missing_ok=True)
        shutil.rmtree((tmp_path / "data" / LINK).readlink())
        await server.start()
        async with connect(BusSettings(url=server.url), TOPOLOGY) as bus:
            assert 0 < len(await stored(bus)) < MANY

            assert accepted(await bus.publish_batch(records()))

            assert sorted(await stored(bus)) == sorted(record.data for record in records())
    staging.close()


def test_what_is_no_memory_is_not_used(tmp_path: Path) -> None:
    staging = Staging(tmp_path, [STREAM], memory=tmp_path)

    staging.open()

    assert not staging.in_memory
    assert not (tmp_path / LINK).exists()
