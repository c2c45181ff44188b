"""Images by a registry: to another machine and back, foreign images, what is damaged or hostile, what is removed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import layers
from tests.support.layers import image, step
from tests.support.oci_registry import an_oci_registry

from squall.errors import DataLossError, ImageBuildError
from squall.spec import ImageSpec
from squall_images import admin, caches, eviction
from squall_images.bases import Whose
from squall_images.distribution import Distribution
from squall_images.egress import EgressRules
from squall_images.eviction import Kept, choose
from squall_images.layered import Description, LayerFolder, normalise
from squall_images.outward import Guard
from squall_images.registry import Place, Registry, place_of
from squall_images.store import BuildSettings, ImageLost, LayerStore

pytestmark = pytest.mark.slow

HEAVY = [pytest.mark.root, pytest.mark.slow]
EMPTY = ImageSpec("", (step("from_scratch"),))


def scratch(*steps: object) -> ImageSpec:
    return ImageSpec("", (step("from_scratch"), *steps))  # type: ignore[arg-type]


def copied(name: str) -> object:
    return step("add_local", files={"sha256": name, "bytes": 1})


async def fetch(reference: object, folder: Path) -> None:
    """Files whose content is their address."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_text(str(reference["sha256"]))  # type: ignore[index]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[str]:
    async with an_oci_registry(tmp_path / "registry") as address:
        yield address


def machine(home: Path, registry: str, builds: bool = True, limit_mib: int = 0) -> tuple[LayerStore, Distribution]:
    folder = LayerFolder(home)
    folder.open()
    guard = Guard(rules=EgressRules(), trusted=frozenset({place_of("x", registry).url}))
    share = Distribution(folder=folder, registry=Registry(), default=registry, guard=guard, limit_mib=limit_mib)
    return LayerStore(home, share=share, fetch=fetch, settings=BuildSettings(builds=builds)), share


async def built_and_pushed(home: Path, registry: str, spec: ImageSpec) -> Description:
    store, share = machine(home, registry)
    await store.ensure(spec, print)
    found = LayerFolder(home).described(spec.id)
    assert found is not None
    await share.push(found, print)
    return found


def _only(store: LayerStore, spec: ImageSpec) -> str:
    found = store.folder.described(spec.id)
    assert found is not None
    return found.layers[0]


class TestOnARegistry:
    pytestmark = HEAVY

    async def test_another_machine_takes_what_was_built_and_builds_nothing(self, registry: str, tmp_path: Path) -> None:
        spec = scratch(copied("one"), step("env", variables={"A": "1"}), copied("two"))
        first = await built_and_pushed(tmp_path / "a", registry, spec)
        gone = LayerFolder(tmp_path / "a").layer(first.layers[1])
        assert (gone / "data/file").read_text() == "two"
        store, _ = machine(tmp_path / "b", registry, builds=False)
        lines: list[str] = []
        found = await store.ensure(spec, lines.append)
        assert [layer.parent.name for layer in found.layers] == list(first.layers)
        assert (found.layers[1] / "data/file").read_text() == "two"
        assert found.env == {"A": "1"}
        assert len(lines) == 2
        assert await store.ensure(spec, lines.append) == found
        assert len(lines) == 2, "it is pulled once"
        with pytest.raises(ImageBuildError, match="builds none"):
            await store.ensure(scratch(copied("unknown")), print)

    async def test_an_image_of_which_a_part_is_gone_is_told_as_lost_and_pushed_again_in_full(
        self, registry: str, tmp_path: Path
    ) -> None:
        spec = scratch(copied("one"), copied("two"))
        found = await built_and_pushed(tmp_path / "a", registry, spec)
        _, share = machine(tmp_path / "a", registry)
        manifest = await share.push(found, print)
        assert await share.whole(spec.id, manifest)
        pushed = json.loads((share.folder.home / "layers" / found.layers[1] / "pushed.json").read_text())
        digits = pushed["digest"].partition(":")[2]
        for blob in (tmp_path / "registry").rglob(f"*/{digits}"):
            shutil.rmtree(blob)
        assert not await share.whole(spec.id, manifest)
        store, _ = machine(tmp_path / "b", registry, builds=False)
        with pytest.raises(ImageLost):
            await store.ensure(spec, print)
        assert await share.push(found, print) == manifest
        assert await share.whole(spec.id, manifest)
        assert len((await store.ensure(spec, print)).layers) == 2

    async def test_what_a_layer_hides_is_hidden_on_the_other_machine(self, registry: str, tmp_path: Path) -> None:
        root = layers.make_root(tmp_path / "root")
        home = layers.store_with_base(tmp_path / "a", root).home
        spec = image(
            step("run_commands", commands=["rm /etc/passwd; rm -r /etc/ssl; mkdir /etc/ssl; chown 9:9 /etc/ssl"])
        )
        await built_and_pushed(home, registry, spec)
        store, _ = machine(tmp_path / "b", registry, builds=False)
        top = (await store.ensure(spec, print)).layers[-1]
        assert stat.S_ISCHR((top / "etc/passwd").lstat().st_mode)
        assert os.getxattr(top / "etc/ssl", "trusted.overlay.opaque") == b"y"
        assert os.getxattr(top / "etc/ssl", "user.overlay.opaque") == b"y"
        assert (top / "etc/ssl").stat().st_uid == 9

    async def test_an_image_that_is_forgotten_there_is_taken_by_no_machine_and_can_be_pushed_again(
        self, registry: str, tmp_path: Path
    ) -> None:
        spec = scratch(copied("one"))
        found = await built_and_pushed(tmp_path / "a", registry, spec)
        _, share = machine(tmp_path / "a", registry)
        manifest = await share.push(found, print)
        assert await share.forget(spec.id, manifest)
        assert not await share.forget(spec.id, manifest), "it is gone already"
        assert await machine(tmp_path / "b", registry)[1].take(spec.id, print, manifest) is None
        assert await share.push(found, print) == manifest
        assert await machine(tmp_path / "b", registry)[1].take(spec.id, print, manifest) == found
        async with an_oci_registry(tmp_path / "keeps", removes=False) as keeps:
            _, there = machine(tmp_path / "a", keeps)
            assert not await there.forget(spec.id, await there.push(found, print)), "this one removes nothing"

    async def test_images_that_share_a_layer_are_pushed_at_the_same_time(self, registry: str, tmp_path: Path) -> None:
        store, share = machine(tmp_path / "a", registry)
        specs = [scratch(copied("big"), step("env", variables={"A": name})) for name in "123"]
        for spec in specs:
            await store.ensure(spec, print)
        with (store.folder.layer(_only(store, specs[0])) / "more").open("wb") as file:
            file.truncate(32 << 20)
        found = [store.folder.described(spec.id) for spec in specs]
        manifests = await asyncio.gather(*(share.push(each, print) for each in found if each is not None))
        for spec, manifest in zip(specs, manifests, strict=True):
            taken = await machine(tmp_path / "b", registry)[1].take(spec.id, print, manifest)
            assert taken == store.folder.described(spec.id)

    async def test_pushing_again_sends_nothing(self, registry: str, tmp_path: Path) -> None:
        found = await built_and_pushed(tmp_path / "a", registry, scratch(copied("x")))
        _, share = machine(tmp_path / "a", registry)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "registry").rglob("data") if path.is_file()}
        assert (await share.push(found, print)).startswith("sha256:")
        after = {path: path.stat().st_mtime_ns for path in (tmp_path / "registry").rglob("data") if path.is_file()}
        assert {path: after[path] for path in before} == before

    async def test_a_damaged_layer_is_refused_and_leaves_nothing(self, registry: str, tmp_path: Path) -> None:
        spec = scratch(copied("precious"))
        await built_and_pushed(tmp_path / "a", registry, spec)
        for blob in (tmp_path / "registry").rglob("data"):
            if blob.is_file() and b"precious" in blob.read_bytes() and blob.stat().st_size > 5000:
                blob.write_bytes(blob.read_bytes().replace(b"precious", b"worthles"))
        store, _ = machine(tmp_path / "b", registry, builds=False)
        with pytest.raises(DataLossError, match="the registry sent sha256:"):
            await store.ensure(spec, print)
        assert not list(LayerFolder(tmp_path / "b").all_layers())
        assert not list((tmp_path / "b" / "staging").iterdir())

    async def test_a_foreign_image_becomes_layers_with_its_configuration(self, registry: str, tmp_path: Path) -> None:
        base = tar(("etc/name", b"one"), ("etc/old/x", b"x"), ("usr/kept", b"k"))
        top = tar(("etc/.wh.name", b""), ("etc/old/.wh..wh..opq", b""), ("etc/old/new", b"n"))
        config = {"config": {"Env": ["A=b=c"], "WorkingDir": "/w", "Entrypoint": ["/e"], "Cmd": ["c"]}}
        push_foreign(registry, "foreign", [base, top], config)
        store, share = machine(tmp_path / "a", registry)
        found = await store.ensure(ImageSpec("", (step("from_registry", tag="foreign"),)), print)
        assert (found.env, found.workdir, found.entrypoint, found.cmd) == ({"A": "b=c"}, "/w", ("/e",), ("c",))
        lower, upper = found.layers
        assert (lower / "etc/name").read_bytes() == b"one"
        assert stat.S_ISCHR((upper / "etc/name").lstat().st_mode)
        assert os.getxattr(upper / "etc/old", "user.overlay.opaque") == b"y"
        assert sorted(path.name for path in (upper / "etc/old").iterdir()) == ["new"]
        push_foreign(registry, "foreign", [top], config)
        assert len((await share.pull("foreign", False, print, Whose())).layers) == 2, "a tag is asked for once"
        assert len((await share.pull("foreign", True, print, Whose())).layers) == 1, "or when that is wanted"

    @pytest.mark.parametrize("member", ["../outside", "/../outside", "a/../../outside"])
    async def test_a_layer_that_leads_out_of_its_folder_is_refused(
        self, registry: str, tmp_path: Path, member: str
    ) -> None:
        push_foreign(registry, "hostile", [tar((member, b"evil"))], {})
        store, _ = machine(tmp_path / "a", registry)
        with pytest.raises(ImageBuildError, match="no archive that a layer can be made of"):
            await store.ensure(ImageSpec("", (step("from_registry", tag="hostile"),)), print)
        assert not list(tmp_path.rglob("outside"))

    async def test_a_small_layer_that_unpacks_to_a_large_one_is_a_failed_build(
        self, registry: str, tmp_path: Path
    ) -> None:
        push_foreign(registry, "bomb", [gzip.compress(tar(("zeros", bytes(12 << 20))))], {})
        store, _ = machine(tmp_path / "a", registry, limit_mib=4)
        with pytest.raises(ImageBuildError, match="unpacks to more than 4 MiB"):
            await store.ensure(ImageSpec("", (step("from_registry", tag="bomb"),)), print)
        push_foreign(registry, "large", [tar(("noise", os.urandom(6 << 20)))], {})
        with pytest.raises(ImageBuildError, match="has more than 4 MiB"):
            await store.ensure(ImageSpec("", (step("from_registry", tag="large"),)), print)
        assert not list((tmp_path / "a" / "staging").iterdir())
        assert not list(LayerFolder(tmp_path / "a").all_layers())

    async def test_links_of_a_layer_lead_nowhere_outside(self, registry: str, tmp_path: Path) -> None:
        target = tmp_path / "victim"
        target.mkdir()
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            link = tarfile.TarInfo("usr")
            link.type, link.linkname = tarfile.SYMTYPE, str(target)
            archive.addfile(link)
            archive.addfile(member := tarfile.TarInfo("usr/file"), io.BytesIO(b""))
            assert member.size == 0
        push_foreign(registry, "links", [content.getvalue()], {})
        store, _ = machine(tmp_path / "a", registry)
        try:
            await store.ensure(ImageSpec("", (step("from_registry", tag="links"),)), print)
        except ImageBuildError:
            pass
        assert not list(target.iterdir())

    async def test_an_image_that_is_not_there_says_so(self, registry: str, tmp_path: Path) -> None:
        store, _ = machine(tmp_path / "a", registry)
        with pytest.raises(ImageBuildError, match="missing:1 is not there"):
            await store.ensure(ImageSpec("", (step("from_registry", tag="missing:1"),)), print)
        silent, _ = machine(tmp_path / "b", "http://127.0.0.1:9")
        with pytest.raises(ImageBuildError, match="cannot be reached"):
            await silent.ensure(EMPTY, print)


def tar(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in members:
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return content.getvalue()


def push_foreign(registry: str, name: str, contents: list[bytes], config: dict[str, object]) -> None:
    """What `docker push` does."""
    client, place = Registry(), place_of(name, registry)

    def stored(content: bytes) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        path = Path(f"/tmp/{digest[7:]}")
        path.write_bytes(content)
        client.upload(place, digest, path)
        path.unlink()
        return {"digest": digest, "size": len(content)}

    kind = "application/vnd.oci.image"
    client.put_manifest(
        place,
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", **stored(json.dumps(config).encode())},
            "layers": [{"mediaType": f"{kind}.layer.v1.tar", **stored(content)} for content in contents],
        },
    )


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "default", "place"),
    [
        ("debian", "http://r:5000", Place("http://r:5000", "debian", "latest")),
        ("a/b:1", "r.example/mirror", Place("https://r.example", "mirror/a/b", "1")),
        ("h.example/a/b:1", "", Place("https://h.example", "a/b", "1")),
        ("localhost/a", "", Place("https://localhost", "a", "latest")),
        ("127.0.0.1:5000/a:t", "http://127.0.0.1:5000/x", Place("http://127.0.0.1:5000", "a", "t")),
        (f"h.example/a@sha256:{'0' * 64}", "", Place("https://h.example", "a", f"sha256:{'0' * 64}")),
    ],
)
def test_names_of_images(name: str, default: str, place: Place) -> None:
    assert place_of(name, default) == place


@pytest.mark.parametrize("name", ["UPPER", "a//b", "../x", "a@sha256:1", ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ImageBuildError, match="not the name of an image"):
        place_of(name, "r.example")


def test_a_name_without_a_registry_needs_a_default() -> None:
    with pytest.raises(ImageBuildError, match="names no registry"):
        place_of("debian:12", "")


@pytest.mark.parametrize("text", ["{}", "nonsense", '{"image_id": "x", "layers": ["../../etc"], "python": null}'])
def test_a_description_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ImageBuildError, match="damaged"):
        Description.of_json(text)


# --- what is removed -------------------------------------------------------------------------------------------------


def test_the_least_used_images_leave_until_the_rest_fits() -> None:
    images = [Kept("old", ("a", "b"), 1, False), Kept("pinned", ("c",), 0, True), Kept("new", ("a", "d"), 3, False)]
    sizes = {"a": 10, "b": 10, "c": 10, "d": 10, "base": 5}
    fixed = frozenset({"base"})
    assert choose(images, sizes, fixed, 100) == []
    assert choose(images, sizes, fixed, 35) == ["old"]
    assert choose(images, sizes, fixed, 34) == ["old", "new"]
    assert choose(images, sizes, fixed, 0) == ["old", "new"]


@pytest.mark.root
async def test_a_sweep_removes_what_nothing_needs_and_nothing_that_runs(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, fetch=fetch)
    runs, rests = scratch(copied("runs")), scratch(copied("rests"))
    for spec in (runs, rests):
        await store.ensure(spec, print)
    folder = store.folder
    for key in folder.all_layers():
        os.utime(tmp_path / "layers" / key, (0, 0))
    with store.pinned(runs.id):
        would = await asyncio.to_thread(eviction.sweep, folder, 0, 1e12, True)
        assert would.images == (rests.id,)
        assert folder.described(rests.id) is not None
        assert (await store.sweep(0, 1e12)).images == (rests.id,)
    assert folder.described(runs.id) is not None
    assert folder.described(rests.id) is None
    assert len(list(folder.all_layers())) == 1
    await store.ensure(rests, print)
    assert folder.described(rests.id) is not None


@pytest.mark.root
async def test_layers_of_a_build_that_is_under_way_stay(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, fetch=fetch)
    await store.ensure(scratch(copied("x")), print)
    (tmp_path / "images" / f"{scratch(copied('x')).id}.json").unlink()
    made = max((tmp_path / "layers" / key).stat().st_mtime for key in store.folder.all_layers())
    assert (await store.sweep(0, made + 1)).layers == ()
    assert len((await store.sweep(0, made + 601)).layers) == 1


@pytest.mark.root
def test_caches_leave_in_the_order_of_their_use_and_never_while_they_are_used(tmp_path: Path) -> None:
    for number, name in enumerate(("apt/old", "apt/new", "uv-cache", "bytecode")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(1 << 20))
        (folder / "updated").touch()
        for path in (folder / "updated", folder):
            os.utime(path, (number, number))
    for name in ("locks", "staging"):
        (tmp_path / name).mkdir()
    os.link(tmp_path / "uv-cache/file", tmp_path / "of a layer")
    left = lambda: sorted(path.parent.name for path in tmp_path.rglob("file"))  # noqa: E731
    assert caches.sweep(tmp_path, 3 << 20) == 0
    assert caches.sweep(tmp_path, 2 << 20) >= 1 << 20
    assert left() == ["bytecode", "new", "uv-cache"]
    with caches.used(tmp_path, caches.UV):
        caches.sweep(tmp_path, 0)
        assert left() == ["uv-cache"]
    caches.sweep(tmp_path, 0)
    assert left() == ["uv-cache"], "what layers have of it takes no room"
    assert not list((tmp_path / "staging").iterdir())


@pytest.mark.root
def test_a_layer_brings_no_devices_and_no_marks_of_another_mount(tmp_path: Path) -> None:
    files = tmp_path / "fs"
    (files / "dev").mkdir(parents=True)
    os.mknod(files / "dev/sda", stat.S_IFBLK | 0o660, os.makedev(8, 0))
    os.mknod(files / "dev/kmem", stat.S_IFCHR | 0o660, os.makedev(1, 2))
    os.mknod(files / "gone", stat.S_IFCHR, 0)
    os.mkfifo(files / "pipe")
    os.setxattr(files / "dev", "trusted.overlay.origin", b"x")
    normalise(files)
    assert sorted(path.name for path in files.rglob("*")) == ["dev", "gone"]
    assert os.listxattr(files / "dev") == []


def test_a_registry_that_asks_for_credentials_is_told_apart(tmp_path: Path) -> None:
    from squall_images.registry import read_auths

    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {"https://r.example": {"auth": "dXNlcjpwYXNz"}}}))
    assert read_auths(str(path)) == {"r.example": "dXNlcjpwYXNz"}
    assert read_auths("") == {}
    path.write_text("nonsense")
    with pytest.raises(ImageBuildError, match="not a file of credentials"):
        read_auths(str(path))


# --- squall-images ---------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_an_operator_registers_bases_and_frees_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(tmp_path / "images")]
    root = tmp_path / "root.tar"
    root.write_bytes(tar(("etc/issue", b"here")))
    assert admin.main([*where, "base", "add", "mine:1", str(root), "--env", "A=b"]) == 0
    assert admin.main([*where, "base", "add", "team/mine:2", str(root)]) == 0
    capsys.readouterr()
    assert admin.main([*where, "base", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == ["mine:1", "team/mine:2"]
    folder = LayerFolder(tmp_path / "images")
    first, second = folder.base("mine:1"), folder.base("team/mine:2")
    assert first is not None
    assert second is not None
    assert first.layers == second.layers, "the same root is the same layer"
    assert first.start.env == {"A": "b"}
    assert admin.main([*where, "prune"]) == 0
    assert folder.base("mine:1") is not None, "bases stay"


@pytest.mark.parametrize("content", [b"no archive", tar(("nothing", b"that a root has")), tar(("../x", b""))])
@pytest.mark.root
def test_what_is_no_root_is_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    assert admin.main(["--dir", str(tmp_path / "images"), "base", "add", "x", str(tmp_path / "bad.tar")]) == 1
    assert "squall-images: " in capsys.readouterr().err
    assert LayerFolder(tmp_path / "images").base_names() == []
