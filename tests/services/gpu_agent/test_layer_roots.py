"""Images on a machine's disk: what stays, what leaves, whose word is taken for what is in them."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from tests.support.oci_registry import an_oci_registry

from squall.errors import DataLossError, ImageBuildError
from squall.spec import ImageSpec, ImageStep
from squall_gpu_agent.backends.sandbox.roots import ASKED_S, LayerRoots, RootSettings
from squall_images import eviction
from squall_images.chain import Configuration
from squall_images.distribution import Distribution
from squall_images.layered import Description, LayerFolder, Python
from squall_images.registry import Registry

pytestmark = pytest.mark.root
LATER = 1e12
PYTHON = Python(
    executable="/usr/bin/python3",
    version=(3, 11, 2),
    site_packages="/usr/lib/python3/dist-packages",
    scripts="/usr/bin",
    data="/usr",
)


def an_image(name: str) -> ImageSpec:
    return ImageSpec("", (ImageStep("from_registry", {"tag": name}),))


def put(folder: LayerFolder, name: str, content: str = "content") -> ImageSpec:
    """An image of one layer, as if it had been built here."""
    spec, key = an_image(name), f"{abs(hash(name)):032x}"[:32]
    staging = folder.staging(key)
    (staging / "fs").mkdir(parents=True)
    (staging / "fs" / "file").write_text(content)
    folder.publish(staging, key, {"title": name, "kind": "test"})
    os.utime(folder.home / "layers" / key, (0, 0))
    folder.describe(Description(image_id=spec.id, layers=(key,), python=PYTHON, start=Configuration()))
    return spec


@pytest.fixture
def folder(tmp_path: Path) -> LayerFolder:
    found = LayerFolder(tmp_path / "images")
    found.open()
    return found


async def test_what_runs_stays_and_what_nothing_runs_of_leaves(folder: LayerFolder) -> None:
    now = [0.0]
    roots = LayerRoots(folder.home, RootSettings(keep_gib=1e-9), monotonic=lambda: now[0])
    runs, rests = put(folder, "runs"), put(folder, "rests")
    release = roots.hold(runs.id)
    await roots.ensure_root(rests, print)
    assert set(roots.here()) == {runs.id, rests.id}
    await roots.sweep(LATER)
    assert set(roots.here()) == {runs.id, rests.id}, "it was asked for a moment ago"
    now[0] = ASKED_S + 1
    assert (await roots.sweep(LATER)).images == (rests.id,)
    assert roots.here() == (runs.id,)
    release()
    await roots.sweep(LATER)
    assert roots.here() == (runs.id,), "its container has ended a moment ago"
    now[0] = 3 * ASKED_S
    assert (await roots.sweep(LATER)).images == (runs.id,)
    assert list(folder.all_layers()) == []
    roots.close()


def test_a_pin_taken_while_the_image_is_forgotten_is_seen(folder: LayerFolder) -> None:
    """Who opened the file before it was removed has a lock on nothing."""
    spec = put(folder, "x")
    pin = folder.home / "pins" / spec.id
    real, opened = Path.open, []

    def open_then_lose(path: Path, *arguments: object, **keywords: object) -> object:
        file = real(path, *arguments, **keywords)  # type: ignore[call-overload]
        if path == pin and not opened:
            opened.append(path)
            path.unlink()  # another process has just forgotten the image
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_then_lose)
        holding = eviction.pinned(folder, spec.id)
        holding.__enter__()
    with pin.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert eviction.sweep(folder, 0, LATER).images == ()
    holding.__exit__(None, None, None)
    assert eviction.sweep(folder, 0, LATER).images == (spec.id,)


async def test_an_agent_takes_the_builders_word_for_what_an_image_is(tmp_path: Path, folder: LayerFolder) -> None:
    async with an_oci_registry(tmp_path / "registry") as registry:
        share = Distribution(folder=folder, registry=Registry(), default=registry)
        good = put(folder, "good")
        description = folder.described(good.id)
        assert description is not None
        manifest = await share.push(description, print)
        evil = folder.described(put(folder, "evil", "evil").id)
        assert evil is not None
        # Somebody who may write to the registry lets the tag mean something else.
        await share.push(Description(**{**_fields(evil), "image_id": good.id}), print)
        words = {good.id: manifest}

        async def manifest_of(image: str) -> str:
            return words.get(image, "")

        roots = LayerRoots(tmp_path / "far", RootSettings(registry=registry), manifest_of=manifest_of)
        lines: list[str] = []
        root = await roots.ensure_root(good, lines.append)
        assert root.pulled
        assert (root.layers[0] / "file").read_text() == "content"
        assert not (await roots.ensure_root(good, lines.append)).pulled
        with pytest.raises(ImageBuildError, match="not on this machine"):
            await roots.ensure_root(an_image("never pushed"), print)
        words[an_image("lost").id] = f"sha256:{'0' * 64}"
        with pytest.raises(ImageBuildError):
            await roots.ensure_root(an_image("lost"), print)
        roots.close()
        for blob in (tmp_path / "registry").rglob("data"):
            if blob.is_file() and b"content" in blob.read_bytes() and blob.stat().st_size > 5000:
                blob.write_bytes(blob.read_bytes().replace(b"content", b"conTent"))
        again = LayerRoots(tmp_path / "third", RootSettings(registry=registry), manifest_of=manifest_of)
        with pytest.raises(DataLossError, match="the registry sent sha256:"):
            await again.ensure_root(good, print)
        assert again.here() == ()
        again.close()
    silent = LayerRoots(tmp_path / "fourth", RootSettings(registry="http://127.0.0.1:9"), manifest_of=manifest_of)
    with pytest.raises(OSError, match="cannot be reached"):
        await silent.ensure_root(good, print)
    silent.close()


def _fields(description: Description) -> dict[str, object]:
    assert json.loads(description.to_json())
    return {name: getattr(description, name) for name in ("layers", "python", "start")}


async def test_what_killed_processes_left_is_removed(folder: LayerFolder) -> None:
    staging = folder.home / "staging"
    (staging / "doomed-0-1" / "fs").mkdir(parents=True)
    (staging / "push-0-1.tar").write_text("")
    now = staging.stat().st_ctime
    eviction.sweep(folder, 1 << 30, now + 60)
    assert len(os.listdir(staging)) == 2
    eviction.sweep(folder, 1 << 30, now + eviction.LEFT_S + 60)
    assert not os.listdir(staging)
