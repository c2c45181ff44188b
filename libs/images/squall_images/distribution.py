"""Images between machines, by a registry: foreign ones become layers, our own go up and come down as they are.

A layer travels as a tar whose digest stands in the manifest; the tag is the image's id. What comes down is checked
against its digest before it is unpacked, and published by rename: it is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import digest
from squall_images import durable, layered
from squall_images.bases import TAR_TIMEOUT_S, Whose, extract
from squall_images.build_room import OnLine
from squall_images.chain import SHELL, Configuration
from squall_images.layered import KEY_DIGITS, Description, LayerFolder
from squall_images.locks import file_lock, to_its_end
from squall_images.outward import Guard
from squall_images.registry import MANIFESTS, Manifest, NotThere, Place, Registry, not_an_image, place_of
from squall_images.trees import entries, remove

LAYER = "application/vnd.squall.layer.v1.tar"
DESCRIPTION = "application/vnd.squall.image.v1+json"
KEY = "squall.layer"
"""Annotation of a layer in a manifest."""
REPOSITORY = "squall/images"
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """One folder of layers and the registries behind it."""

    folder: LayerFolder
    registry: Registry
    """With the operator's credentials."""
    default: str = ""
    """Where names without a host and our own images are: `[http://]host[/prefix]`; empty = nowhere."""
    guard: Guard | None = None
    """What images that users name may be pulled from; None: no images of users are pulled here."""
    limit_mib: int = 0
    """Most that one layer of an image of users may unpack to; 0 = any."""
    pull_s: float = 3600.0
    """Most that the pull of an image of users may take."""
    shared: tuple[str, ...] = ()
    """`host[/prefix]` that users may pull from with the operator's credentials."""

    # --- foreign images ---

    async def pull(self, tag: str, fresh: bool, on_line: OnLine, whose: Whose) -> Description:
        """An image of a registry as a base. A tag is asked for once, and again only if that is wanted (`fresh`)."""
        place = place_of(tag, self.default)
        client = self._client(place, whose)
        name = f"oci:{whose.scope}{place}"
        known = None if fresh else self.folder.base(name)
        if known is not None:
            return known
        on_line(f"pulling {place}")
        wanted, start = await asyncio.to_thread(_read, client, place)
        layers: list[str] = []
        with self.folder.young(layers):
            for layer in wanted:
                # Whoever names a digest that somebody's credentials got has not got it himself.
                below = layers[-1] if layers else whose.scope
                key = digest({"below": below, "oci": layer["digest"]})[:KEY_DIGITS]
                await self._layer(client, place, layer, key, on_line)
                layers.append(key)
        found = Description(image_id=f"oci:{place}", layers=tuple(layers), python=None, start=start)
        self.folder.register(name, found)
        return found

    def _client(self, place: Place, whose: Whose) -> Registry:
        """With the credentials that are whose image it is to be: users' own, or the operator's where he shares them."""
        if whose.operator:
            return self.registry
        # Of any host: its registry may be known by several names.
        if f"/{place.repository}".endswith(f"/{REPOSITORY}"):
            raise ImageBuildError(
                f"{place} is where a platform keeps its own images", fix="Use `Image.from_name` or `from_id`."
            )
        if self.guard is None:
            raise ImageBuildError(f"{place} is not pulled on this machine", fix="Builders pull images: deploy the app.")
        host = place.url.partition("://")[2]
        until = time.monotonic() + self.pull_s
        if whose.login:
            return Registry({host: whose.login}, self.guard, until)
        full = f"{host}/{place.repository}/"
        lent = any(full.startswith(f"{entry.strip('/')}/") for entry in self.shared)
        return Registry(self.registry.auths if lent else {}, self.guard, until)

    async def _layer(self, client: Registry, place: Place, layer: Mapping[str, Any], key: str, on_line: OnLine) -> None:
        if self.folder.keep(key):
            return
        async with file_lock(self.folder.home / "locks" / key):
            if self.folder.has(key):
                return
            staging = self.folder.staging(key)
            try:
                await to_its_end(self._unpack, client, place, layer, staging)
                about = {"title": str(place), "kind": "pulled", "oci": str(layer["digest"])}
                await to_its_end(self.folder.publish, staging, key, about)
            finally:
                await to_its_end(remove, staging)
        on_line(f"layer {str(layer['digest'])[7:19]}: {self.folder.about(key).get('bytes', 0) >> 20} MiB")

    def _unpack(self, client: Registry, place: Place, layer: Mapping[str, Any], staging: Path) -> None:
        if "zstd" in str(layer.get("mediaType", "")) and shutil.which("zstd") is None:
            raise ImageBuildError(
                f"a layer of {place} is packed with zstd", fix="Install the program zstd on this machine."
            )
        remove(staging)
        files = staging / "fs"
        files.mkdir(parents=True)
        archive = staging / "layer.tar"
        with archive.open("wb") as target:
            most = 0 if client is self.registry else self.limit_mib
            client.blob(place, str(layer["digest"]), target, most << 20)
        extract(archive, files, most)
        archive.unlink()
        if layer.get("mediaType") != LAYER:
            to_overlay(files)

    # --- our own ---

    async def push(self, found: Description, on_line: OnLine) -> str:
        """Store an image where other machines get it; the digest of its manifest. Layers that are there stay."""
        place = self._own(found.image_id)
        layers = [await self._pushed(place, key) for key in found.layers]
        description = found.to_json().encode()
        config = await asyncio.to_thread(self._push_bytes, place, description)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "artifactType": DESCRIPTION,
            "config": {"mediaType": DESCRIPTION, **config},
            "layers": layers,
        }
        on_line(f"pushed {len(layers)} layers")
        return await asyncio.to_thread(self.registry.put_manifest, place, manifest)

    async def forget(self, image_id: str, manifest: str) -> bool:
        """Remove one of our own images there, as far as the registry removes anything."""
        return await asyncio.to_thread(self.registry.forget, replace(self._own(image_id), reference=manifest))

    def _own(self, image_id: str) -> Place:
        return place_of(f"{REPOSITORY}:{image_id}", self.default)

    async def _pushed(self, place: Place, key: str) -> dict[str, Any]:
        """What a manifest says of a layer that is there now. Images that share it push it once."""
        found: list[dict[str, Any]] = []
        async with file_lock(self.folder.home / "locks" / f"push-{key}"):
            await to_its_end(lambda: found.append(self._push_layer(place, key)))
        return found[0]

    def _push_layer(self, place: Place, key: str) -> dict[str, Any]:
        known = self.folder.home / "layers" / key / "pushed.json"
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(known.read_text())
            if self.registry.has_blob(place, found["digest"]):
                return found
        archive = self.folder.staging(f"push-{key}-{os.getpid()}.tar")
        try:
            _pack(self.folder.layer(key), archive)
            with archive.open("rb") as file:
                name = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            self.registry.upload(place, name, archive)
            found = {
                "mediaType": LAYER,
                "digest": name,
                "size": archive.stat().st_size,
                "annotations": {KEY: key},
            }
        finally:
            archive.unlink(missing_ok=True)
        durable.write(known, json.dumps(found))
        return found

    def _push_bytes(self, place: Place, content: bytes) -> dict[str, Any]:
        name = f"sha256:{hashlib.sha256(content).hexdigest()}"
        part = self.folder.staging(f"push-{name[7:]}-{os.getpid()}")
        part.write_bytes(content)
        try:
            self.registry.upload(place, name, part)
        finally:
            part.unlink()
        return {"digest": name, "size": len(content)}

    async def whole(self, image_id: str, manifest: str) -> bool:
        """Whether the registry has one of our own images with all of its parts. Raises `ImageBuildError`."""
        if not self.default or not manifest:
            return False
        return await asyncio.to_thread(self._whole, replace(self._own(image_id), reference=manifest))

    def _whole(self, place: Place) -> bool:
        try:
            found = self.registry.manifest(place, os.uname().machine)
        except NotThere:
            return False
        parts = [found.config, *found.layers]
        return all(self.registry.has_blob(place, str(part["digest"])) for part in parts)

    async def take(self, image_id: str, on_line: OnLine, pinned: str | None = None) -> Description | None:
        """An image that another machine pushed, with the layers that are missing here; None if it, or a part of it, is
        not there.

        `pinned`: digest of the only manifest that will do (empty: there is none). Without, the one with its name."""
        if not self.default or pinned == "":
            return None
        place = self._own(image_id)
        if pinned is not None:
            place = replace(place, reference=pinned)
        try:
            return await self._take(image_id, place, on_line)
        except NotThere:
            return None

    async def _take(self, image_id: str, place: Place, on_line: OnLine) -> Description:
        manifest: Manifest = await asyncio.to_thread(self.registry.manifest, place, os.uname().machine)
        text = await asyncio.to_thread(self.registry.text, place, str(manifest.config["digest"]))
        found = Description.of_json(text)
        by_key = {str(layer.get("annotations", {}).get(KEY)): layer for layer in manifest.layers}
        if found.image_id != image_id or set(by_key) != set(found.layers):
            raise ImageBuildError(f"{place} is not the image that its name says", fix="Push it again.")
        try:
            with self.folder.young(found.layers):
                await self._layers(place, found.layers, by_key, on_line)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # the others were cancelled by it, or fail for the same reason
        return found

    async def _layers(
        self, place: Place, keys: Sequence[str], by_key: Mapping[str, Mapping[str, Any]], on_line: OnLine
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                tasks.create_task(self._layer(self.registry, place, by_key[key], key, on_line))


def _read(client: Registry, place: Place) -> tuple[list[dict[str, str]], Configuration]:
    """Layers of an image, and how its containers start. Whoever runs a registry may answer anything."""
    manifest = client.manifest(place, os.uname().machine)
    try:
        config = json.loads(client.text(place, str(manifest.config["digest"])))
        names = ("digest", "mediaType")
        layers = [{name: str(layer.get(name, "")) for name in names} for layer in manifest.layers]
        return layers, configuration_of(config.get("config") or {})
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise not_an_image(place) from error


def _pack(files: Path, archive: Path) -> None:
    """The same files give the same bytes."""
    command = ["tar", "--create", "--file", str(archive), "--directory", str(files), "--sort=name", "--numeric-owner"]
    command += ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=user.*"]
    done = subprocess.run(
        [*command, "."], capture_output=True, text=True, errors="replace", timeout=TAR_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise OSError(done.returncode, f"tar: {done.stderr.strip()[-500:]}")


def to_overlay(files: Path) -> None:
    """From the marks of OCI layers to those of overlayfs."""
    for path in map(Path, entries(files)):
        if not path.name.startswith(WHITEOUT) or (path.is_dir() and not path.is_symlink()):
            continue
        path.unlink()
        if path.name == OPAQUE:
            layered.hide(str(path.parent))
        else:
            layered.whiteout(path.with_name(path.name[len(WHITEOUT) :]))


def configuration_of(config: Mapping[str, Any]) -> Configuration:
    """How containers start, as images of registries and engines say it."""

    def words(name: str) -> tuple[str, ...]:
        return tuple(map(str, config.get(name) or ()))

    return Configuration(
        env=dict(entry.split("=", 1) for entry in config.get("Env") or () if "=" in entry),
        workdir=str(config.get("WorkingDir") or ""),
        entrypoint=words("Entrypoint"),
        cmd=words("Cmd"),
        shell=words("Shell") or SHELL,
    )
