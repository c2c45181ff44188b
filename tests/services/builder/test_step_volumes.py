"""Volumes of build steps: brought before the step, committed after it, once, and not if it fails."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.sdk.fake_gateway import TOKEN, FakeGateway, serving
from tests.support import layers
from tests.support.layers import image, step

from squall.errors import ImageBuildError
from squall.spec import ImageStep, VolumeMount, to_wire
from squall_builder.step_volumes import StepVolumes
from squall_bus import Bus
from squall_contracts.builds import scoped
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_images.step_volumes import Volumes
from squall_images.store import LayerStore
from squall_service.blobs import Blobs, GatewayStore
from squall_service.clock import SystemClock

in_rooms = [pytest.mark.root, pytest.mark.slow]
MOUNT = VolumeMount("/models", "vo-1", "models")


@pytest.fixture
def gateway() -> FakeGateway:
    return FakeGateway()


@pytest.fixture
def volumes(gateway: FakeGateway) -> Iterator[StepVolumes]:
    @contextlib.asynccontextmanager
    async def token() -> AsyncIterator[str]:
        yield TOKEN

    with serving(gateway) as address:
        blobs = Blobs(GatewayStore(address.url, TOKEN))
        yield StepVolumes(blobs=blobs, gateway_url=address.url, workspace="main", token=token)


def put(gateway: FakeGateway, path: str, content: bytes = b"", link: str = "") -> None:
    blocks = [hashlib.sha256(content).hexdigest()] if content else []
    gateway.blobs.update(dict.fromkeys(blocks, content))
    said = {"path": path, "size": len(content), "mtime": 5.0, "mode": 0o644, "blocks": blocks, "link": link}
    gateway.volume_files[path] = said


def content(gateway: FakeGateway) -> dict[str, bytes | str]:
    return {
        path: file["link"] or b"".join(gateway.blobs[block] for block in file["blocks"])
        for path, file in gateway.volume_files.items()
    }


async def changed(volumes: Volumes, folder: Path, mount: VolumeMount, work: Any) -> list[str]:
    """What is said while `work` does something in the folder of a volume."""
    lines: list[str] = []
    async with volumes([to_wire(mount)], folder / "volumes", lines.append) as brought:
        work(brought.binds[0].source)
    assert not (folder / "volumes").exists()
    return lines


async def test_what_a_step_changes_is_committed(volumes: StepVolumes, gateway: FakeGateway, tmp_path: Path) -> None:
    put(gateway, "same", b"1")
    put(gateway, "deep/gone", b"2")
    put(gateway, "deep/latest", link="gone")

    def work(folder: Path) -> None:
        assert (folder / "deep" / "latest").read_bytes() == b"2"
        (folder / "new").mkdir()
        (folder / "new" / "weights").write_bytes(b"3")
        (folder / "new" / "link").symlink_to("/models/new/weights")
        (folder / "deep" / "gone").unlink()

    uploads = len(gateway.paths("PUT"))
    await changed(volumes.bringing, tmp_path, MOUNT, work)

    assert content(gateway) == {"same": b"1", "deep/latest": "gone", "new/weights": b"3", "new/link": "weights"}
    assert len(gateway.paths("PUT")) - uploads == 1, "what was not changed is not sent again"
    assert gateway.volume_version == 1


async def test_nothing_is_committed_of_a_step_that_fails_or_changes_nothing(
    volumes: StepVolumes, gateway: FakeGateway, tmp_path: Path
) -> None:
    put(gateway, "a", b"1")

    def fails(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise ImageBuildError("it fails")

    with pytest.raises(ImageBuildError, match="it fails"):
        await changed(volumes.bringing, tmp_path, MOUNT, fails)
    await changed(volumes.bringing, tmp_path, MOUNT, lambda folder: (folder / "a").read_bytes())

    assert (gateway.volume_version, content(gateway)) == (0, {"a": b"1"})


async def test_one_folder_of_a_volume_is_all_that_a_step_sees_and_changes(
    volumes: StepVolumes, gateway: FakeGateway, tmp_path: Path
) -> None:
    put(gateway, "v1/a", b"1")
    put(gateway, "v2/a", b"2")

    def work(folder: Path) -> None:
        assert os.listdir(folder) == ["a"]
        (folder / "a").rename(folder / "b")

    await changed(volumes.bringing, tmp_path, VolumeMount("/m", "vo-1", "models", sub_path="v2"), work)
    assert content(gateway) == {"v1/a": b"1", "v2/b": b"2"}


async def test_links_that_lead_out_and_special_files_are_left_out_and_nothing_behind_them_is_read(
    volumes: StepVolumes, gateway: FakeGateway, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("canary")

    def work(folder: Path) -> None:
        (folder / "out").symlink_to(secret)
        (folder / "file").symlink_to("/etc/passwd")
        os.mkfifo(folder / "pipe")

    lines = await changed(volumes.bringing, tmp_path, MOUNT, work)
    assert (content(gateway), gateway.volume_version) == ({}, 0)
    assert [line.split(": ", 1)[1].split()[0] for line in sorted(lines)] == ["file", "out", "pipe"]


@pytest.mark.parametrize("path", ["/", "/root", "/.squall", "/.squall/code", "relative", "/proc/1"])
async def test_places_that_no_volume_can_have_are_refused(volumes: StepVolumes, tmp_path: Path, path: str) -> None:
    with pytest.raises(ImageBuildError, match="cannot be mounted"):
        async with volumes.bringing([to_wire(VolumeMount(path, "vo-1"))], tmp_path / "v", print):
            pytest.fail("it was mounted")


async def test_a_token_is_of_the_workspace_and_ends_with_the_step(bus: Bus) -> None:
    from squall_builder import tokens

    async with tokens.of_workspace(bus, SystemClock(), "acme") as token:
        entry = await bus.kv(TOKENS).get(token_key(token.encode()))
        assert entry is not None
        record = TokenRecord.decode(entry.value)
        assert (record.workspace, record.scope) == ("acme", "container")
        assert token_key(token.encode()).startswith("containers.-builders.")
    assert await bus.kv(TOKENS).get(token_key(token.encode())) is None


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = layers.make_root(tmp_path_factory.mktemp("base") / "root")
    home = layers.store_with_base(tmp_path_factory.mktemp("layers"), root).home
    asyncio.run(LayerStore(home).ensure(image(), print))
    return home


class TestInRooms:
    """With a real build room; needs root."""

    pytestmark = in_rooms

    @pytest.fixture
    def store(self, filled: Path, tmp_path: Path) -> LayerStore:
        return LayerStore(Path(shutil.copytree(filled, tmp_path / "layers", copy_function=os.link, symlinks=True)))

    async def test_a_step_fills_a_volume_once_and_the_image_has_nothing_of_it(
        self, store: LayerStore, volumes: StepVolumes, gateway: FakeGateway
    ) -> None:
        put(gateway, "before", b"old")
        spec = scoped(image(filling("cat /models/before > /models/after && rm /models/before")), "main", "main")
        for _ in range(2):
            found = await store.ensure(spec, print, volumes=volumes.bringing)
        assert content(gateway) == {"after": b"old"}
        assert gateway.volume_version == 1, "an image that is there runs nothing again"
        assert not any(path.name == "after" for layer in found.layers for path in layer.glob("models/*"))
        assert not list((store.folder.home / "staging").iterdir())

    async def test_a_step_that_fails_commits_nothing(
        self, store: LayerStore, volumes: StepVolumes, gateway: FakeGateway
    ) -> None:
        spec = scoped(image(filling("echo half > /models/half; exit 3")), "main", "main")
        with pytest.raises(ImageBuildError, match="exit code 3"):
            await store.ensure(spec, print, volumes=volumes.bringing)
        assert (content(gateway), gateway.volume_version) == ({}, 0)

    async def test_a_step_that_says_not_whose_or_which_volume_it_means_is_refused(
        self, store: LayerStore, volumes: StepVolumes
    ) -> None:
        with pytest.raises(ImageBuildError, match="whose they are"):
            await store.ensure(image(filling("true")), print, volumes=volumes.bringing)
        lost = step("run_commands", commands=["true"], volumes={"/models": {"volume": "/models"}})
        with pytest.raises(ImageBuildError, match="has lost its volumes"):
            await store.ensure(scoped(image(lost), "main", "main"), print, volumes=volumes.bringing)


def filling(command: str) -> ImageStep:
    """A step with the volume at /models."""
    return step(
        "run_commands", commands=[command], volumes={"/models": {"volume": "/models"}}, _volumes=[to_wire(MOUNT)]
    )
