"""The builder on a real bus: one request becomes one image, one record and one log."""

from __future__ import annotations

import hashlib
import io
import shutil
import socket
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError
from tests.docker.sandboxes import shared_base_root
from tests.support.eventually import eventually
from tests.support.oci_registry import an_oci_registry

from squall.errors import ImageBuildError, from_wire
from squall.spec import ImageSpec, ImageStep
from squall_builder import service as builder_service
from squall_builder.settings import BuilderSettings
from squall_bus import Bus, SubjectTaken
from squall_contracts import subjects
from squall_contracts.blobs import workspace_place
from squall_contracts.builds import IMAGES, BuildImage, ImageRecord
from squall_contracts.logs import LogLines
from squall_images import bases
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder
from squall_service.run import Running, Service, ServiceContext, start

PLAIN = ImageSpec(steps=(ImageStep(kind="base"),))
IMPOSSIBLE = ImageSpec(
    steps=(ImageStep(kind="pip_install", arguments={"packages": ["no-such-wheel"], "extra_options": "--no-index"}),)
)
UNKNOWN = ImageSpec(steps=(ImageStep(kind="teleport"),))


@asynccontextmanager
async def a_builder(bus: Bus, folder: Path, **settings: object) -> AsyncIterator[Running]:
    given = BuilderSettings(images_dir=folder / "images", **settings)  # type: ignore[arg-type]

    async def main(context: ServiceContext[BuilderSettings]) -> None:
        await builder_service.run(given, bus, context)

    async with start(Service(name="builder", main=main, settings=given, grace_s=10)) as running:
        yield running


async def request(bus: Bus, spec: ImageSpec, *, lost: bool = False, workspace: str = "") -> None:
    """What the gateway does when an app needs an image, or the scheduler when a machine misses one."""
    command = BuildImage(image=spec.id, spec=spec, requested_at=time.time(), lost=lost, workspace=workspace)
    await bus.publish(subjects.build("local", spec.id), command.encode())


async def record_of(bus: Bus, spec: ImageSpec, *states: str) -> ImageRecord | None:
    entry = await bus.kv(IMAGES).get(spec.id)
    record = None if entry is None else ImageRecord.decode(entry.value)
    return record if record is not None and record.state in (states or ("ready", "failed")) else None


async def queued(bus: Bus) -> int:
    return (await bus.stream_info(subjects.builds_stream("local"))).messages


async def log_of(bus: Bus, spec: ImageSpec) -> str:
    shard = subjects.shard_of_name(spec.id, bus.topology.shards)
    stream, wanted = subjects.logs_stream("local", shard), subjects.logs_of_app("local", shard, spec.id)
    batches = [LogLines.decode(stored.data) async for stored in bus.read(stream, wanted)]
    return "".join(str(text) for batch in batches for _, _, text in batch.lines)


async def test_a_plain_image_becomes_ready_and_leaves_the_queue(bus: Bus, tmp_path: Path) -> None:
    async with a_builder(bus, tmp_path):
        await request(bus, PLAIN)
        record = await eventually(lambda: record_of(bus, PLAIN), within_s=30)
        assert record.state == "ready", record
        assert record.python == "3.11"
        assert list((tmp_path / "images" / "envs").iterdir())
        await eventually(lambda: no(queued(bus)))
        assert "image ready" in await log_of(bus, PLAIN)


async def test_a_failed_step_is_told_with_its_output_and_exit_code(bus: Bus, tmp_path: Path) -> None:
    async with a_builder(bus, tmp_path):
        await request(bus, IMPOSSIBLE)
        record = await eventually(lambda: record_of(bus, IMPOSSIBLE), within_s=30)
        assert record.state == "failed"
        error = from_wire(dict(record.error))
        assert isinstance(error, ImageBuildError)
        assert error.data["exit_code"] == 1
        assert "no-such-wheel" in error.data["output"]
        assert error.data["step"].startswith("pip_install")
        assert "no-such-wheel" in await log_of(bus, IMPOSSIBLE)
        await eventually(lambda: no(queued(bus)))


async def test_a_request_after_a_failure_is_tried_again(bus: Bus, tmp_path: Path) -> None:
    async with a_builder(bus, tmp_path):
        await request(bus, UNKNOWN)
        first = await eventually(lambda: record_of(bus, UNKNOWN, "failed"))
        await eventually(lambda: no(queued(bus)))
        await request(bus, UNKNOWN)

        async def failed_again() -> bool:
            record = await record_of(bus, UNKNOWN, "failed")
            return record is not None and record.updated_at > first.updated_at

        await eventually(failed_again)


async def test_two_requests_for_one_image_build_it_once(bus: Bus, tmp_path: Path) -> None:
    await request(bus, PLAIN)
    try:
        await request(bus, PLAIN)
    except SubjectTaken:
        pass  # it is asked for already
    async with a_builder(bus, tmp_path), a_builder(bus, tmp_path):
        record = await eventually(lambda: record_of(bus, PLAIN), within_s=30)
        await eventually(lambda: no(queued(bus)))
        await request(bus, PLAIN)  # late: the image is there
        await eventually(lambda: no(queued(bus)))
        assert await record_of(bus, PLAIN) == record
        assert (await log_of(bus, PLAIN)).count("image ready") == 1


async def test_a_request_delivered_twice_is_answered_once(bus: Bus, tmp_path: Path) -> None:
    await request(bus, PLAIN)
    stored = await bus.get_last(subjects.builds_stream("local"), subjects.build("local", PLAIN.id))
    assert stored is not None
    async with a_builder(bus, tmp_path):
        record = await eventually(lambda: record_of(bus, PLAIN), within_s=30)
        await eventually(lambda: no(queued(bus)))
        await bus.publish(subjects.build("local", PLAIN.id), stored.data)
        await eventually(lambda: no(queued(bus)))
        assert await record_of(bus, PLAIN) == record


async def test_a_message_that_is_no_request_does_not_block_the_queue(bus: Bus, tmp_path: Path) -> None:
    await bus.publish(subjects.build("local", "im-nonsense"), b"nonsense")
    async with a_builder(bus, tmp_path, concurrency=1):
        await request(bus, UNKNOWN)
        await eventually(lambda: record_of(bus, UNKNOWN, "failed"))
        await eventually(lambda: no(queued(bus)))


async def test_a_build_that_outlasts_the_drain_is_handed_back(bus: Bus, tmp_path: Path) -> None:
    async with a_silent_index() as url:
        step = ImageStep(kind="pip_install", arguments={"packages": ["x"], "index_url": url})
        endless = ImageSpec(steps=(step,))
        async with a_builder(bus, tmp_path, drain_s=0.1) as builder:
            await request(bus, endless)
            await eventually(lambda: record_of(bus, endless, "building"))
            await builder.stop()
        assert builder.drained
        assert await queued(bus) == 1
        async with a_builder(bus, tmp_path, drain_s=0.1):

            async def taken_again() -> bool:
                info = await bus.consumer_info(subjects.builds_stream("local"), builder_service.CONSUMER)
                return info is not None and info.ack_pending == 1

            await eventually(taken_again)


async def no(count: object) -> bool:
    return not await count  # type: ignore[misc]


@asynccontextmanager
async def a_silent_index() -> AsyncIterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/simple"


@pytest.mark.root
async def test_a_builder_of_layers_records_them_and_stores_the_image_in_the_registry(bus: Bus, tmp_path: Path) -> None:
    files = tmp_path / "blobs"
    of_main, of_another = (a_blob(files / workspace_place(name), name) for name in ("main", "another"))
    spec, theirs = (
        ImageSpec("", (ImageStep("from_scratch"), ImageStep("add_local", {"files": files})))
        for files in (of_main, of_another)
    )
    async with (
        an_oci_registry(tmp_path / "registry") as registry,
        a_builder(bus, tmp_path, formats="layers", blob_dir=str(files), registry=registry),
    ):
        await request(bus, spec, workspace="main")
        record = await eventually(lambda: record_of(bus, spec), within_s=30)
        assert (record.state, len(record.layers), record.spec) == ("ready", 1, spec), record.error
        layer = LayerFolder(tmp_path / "images").layer(record.layers[0])
        assert (layer / "data/file").read_text() == "main"
        assert "pushed 1 layers" in await log_of(bus, spec)
        await request(bus, theirs, workspace="main")
        refused = await eventually(lambda: record_of(bus, theirs), within_s=30)
        assert refused.state == "failed", "files of another workspace"


@pytest.mark.root
async def test_an_image_that_is_missed_somewhere_is_made_again_if_it_is_lost(bus: Bus, tmp_path: Path) -> None:
    steps = (ImageStep("from_scratch"), ImageStep("add_local", {"files": a_blob(tmp_path / "blobs")}))
    spec = ImageSpec("", steps)
    settings = {"formats": "layers", "blob_dir": str(tmp_path / "blobs")}
    async with an_oci_registry(tmp_path / "registry") as registry:
        async with a_builder(bus, tmp_path, **settings):
            await request(bus, spec)
            alone = await eventually(lambda: record_of(bus, spec), within_s=30)
            await eventually(lambda: no(queued(bus)))
            await request(bus, spec, lost=True)
            await eventually(lambda: no(queued(bus)))
            assert await record_of(bus, spec) == alone, "it is there"
        async with a_builder(bus, tmp_path, registry=registry, **settings):
            await request(bus, spec, lost=True)
            pushed = await eventually(lambda: newer(bus, spec, alone), within_s=30)
            assert pushed.manifest, "the registry was set after it was built"
            await eventually(lambda: no(queued(bus)))
            await request(bus, spec, lost=True)
            await eventually(lambda: no(queued(bus)))
            assert await record_of(bus, spec) == pushed, "it is there"
            shutil.rmtree(tmp_path / "registry" / "data")
            shutil.rmtree(tmp_path / "images" / "layers")
            await request(bus, spec, lost=True)
            again = await eventually(lambda: newer(bus, spec, pushed), within_s=30)
            assert (again.state, bool(again.manifest)) == ("ready", True), again.error
            assert (LayerFolder(tmp_path / "images").layer(again.layers[-1]) / "data/file").read_text() == "hello"


@pytest.mark.root
async def test_of_processes_and_sandboxes_each_image_is_made_for_those_that_need_it(
    bus: Bus, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, base = LayerFolder(tmp_path / "images"), shared_base_root(tmp_path_factory)
    bases.register(folder, f"debian_slim:{PLAIN.python_version}", base, Configuration())
    steps = (ImageStep("from_scratch"), ImageStep("add_local", {"files": a_blob(tmp_path / "blobs")}))
    with_files = ImageSpec("", steps)
    async with a_builder(bus, tmp_path, formats="needed", blob_dir=str(tmp_path / "blobs")):
        await request(bus, PLAIN)
        plain = await eventually(lambda: record_of(bus, PLAIN), within_s=30)
        assert (plain.state, plain.layers) == ("ready", ()), plain.error
        await request(bus, with_files)
        assert (await eventually(lambda: record_of(bus, with_files), within_s=30)).layers
        await eventually(lambda: no(queued(bus)))
        await request(bus, PLAIN, lost=True)
        boxed = await eventually(lambda: newer(bus, PLAIN, plain), within_s=30)
        assert (boxed.state, bool(boxed.layers)) == ("ready", True), boxed.error


async def newer(bus: Bus, spec: ImageSpec, than: ImageRecord) -> ImageRecord | None:
    record = await record_of(bus, spec)
    return record if record is not None and record.updated_at > than.updated_at else None


def a_blob(files: Path, said: str = "hello") -> dict[str, object]:
    """A zip with one file, in a store of blobs; its reference."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("data/file", said)
    name = hashlib.sha256(content.getvalue()).hexdigest()
    (files / name[:2]).mkdir(parents=True)
    (files / name[:2] / name).write_bytes(content.getvalue())
    return {"sha256": name, "bytes": len(content.getvalue())}


async def test_a_builder_of_environments_says_who_can_do_the_rest(bus: Bus, tmp_path: Path) -> None:
    spec = ImageSpec(steps=(ImageStep("run_commands", {"commands": ["true"]}),))
    async with a_builder(bus, tmp_path):
        await request(bus, spec)
        record = await eventually(lambda: record_of(bus, spec, "failed"))
        error = from_wire(dict(record.error))
        assert isinstance(error, ImageBuildError)
        assert "sandbox" in error.hint
        assert "SQUALL_BUILDER_FORMATS" in error.hint


def test_a_network_that_is_none_stops_the_start() -> None:
    with pytest.raises(ValidationError, match="allowed"):
        BuilderSettings(allowed=["not a network"])
