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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import digest
from squall_images import layered
from squall_images.bases import TAR_TIMEOUT_S, extract
from squall_images.build_room import OnLine
from squall_images.chain import Configuration
from squall_images.layered import KEY_DIGITS, Description, LayerFolder
from squall_images.locks import file_lock, to_its_end
from squall_images.registry import MANIFESTS, Manifest, NotThere, Place, Registry, place_of

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
    default: str = ""
    """Where names without a host and our own images are: `[http://]host[/prefix]`; empty = nowhere."""

    # --- foreign images ---

    async def pull(self, tag: str, fresh: bool, on_line: OnLine) -> Description:
        """An image of a registry as a base. A tag is asked for once, and again only if that is wanted (`fresh`)."""
        place = place_of(tag, self.default)
        known = None if fresh else self.folder.base(f"oci:{place}")
        if known is not None:
            return known
        on_line(f"pulling {place}")
        manifest = await asyncio.to_thread(self.registry.manifest, place, os.uname().machine)
        config = json.loads(await asyncio.to_thread(self.registry.text, place, str(manifest.config["digest"])))
        layers: list[str] = []
        for layer in manifest.layers:
            below = layers[-1] if layers else ""
            key = digest({"below": below, "oci": str(layer["digest"])})[:KEY_DIGITS]
            await self._layer(place, layer, key, f"{place}", on_line)
            layers.append(key)
        found = Description(image_id=f"oci:{place}", layers=tuple(layers), python=None, start=_start(config))
        self.folder.register(f"oci:{place}", found)
        return found

    async def _layer(self, place: Place, layer: Mapping[str, Any], key: str, title: str, on_line: OnLine) -> None:
        if self.folder.has(key):
            return
        async with file_lock(self.folder.home / "locks" / key):
            if self.folder.has(key):
                return
            staging = self.folder.staging(key)
            try:
                await to_its_end(self._unpack, place, layer, staging)
                about = {"title": title, "kind": "pulled", "oci": str(layer["digest"])}
                await to_its_end(self.folder.publish, staging, key, about)
            finally:
                await to_its_end(shutil.rmtree, staging, True)
        on_line(f"layer {str(layer['digest'])[7:19]}: {self.folder.about(key).get('bytes', 0) >> 20} MiB")

    def _unpack(self, place: Place, layer: Mapping[str, Any], staging: Path) -> None:
        if "zstd" in str(layer.get("mediaType", "")) and shutil.which("zstd") is None:
            raise ImageBuildError(
                f"a layer of {place} is packed with zstd", fix="Install the program zstd on this machine."
            )
        shutil.rmtree(staging, ignore_errors=True)
        files = staging / "fs"
        files.mkdir(parents=True)
        archive = staging / "layer.tar"
        with archive.open("wb") as target:
            self.registry.blob(place, str(layer["digest"]), target)
        extract(archive, files)
        archive.unlink()
        if layer.get("mediaType") != LAYER:
            _whiteouts(files)

    # --- our own ---

    async def push(self, found: Description, on_line: OnLine) -> str:
        """Store an image where other machines get it; the digest of its manifest. Layers that are there stay."""
        place = self._own(found.image_id)
        layers = [await asyncio.to_thread(self._push_layer, place, key) for key in found.layers]
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

    def _own(self, image_id: str) -> Place:
        return place_of(f"{REPOSITORY}:{image_id}", self.default)

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
        known.write_text(json.dumps(found))
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

    async def take(self, image_id: str, on_line: OnLine) -> Description | None:
        """An image that another machine pushed, with the layers that are missing here; None if there is none."""
        if not self.default:
            return None
        place = self._own(image_id)
        try:
            manifest: Manifest = await asyncio.to_thread(self.registry.manifest, place, os.uname().machine)
        except NotThere:
            return None
        text = await asyncio.to_thread(self.registry.text, place, str(manifest.config["digest"]))
        found = Description.of_json(text)
        by_key = {str(layer.get("annotations", {}).get(KEY)): layer for layer in manifest.layers}
        if found.image_id != image_id or set(by_key) != set(found.layers):
            raise ImageBuildError(f"{place} is not the image that its name says", fix="Push it again.")
        async with asyncio.TaskGroup() as tasks:
            for key in found.layers:
                tasks.create_task(self._layer(place, by_key[key], key, f"pulled {image_id}", on_line))
        return found


def _pack(files: Path, archive: Path) -> None:
    """The same files give the same bytes."""
    command = ["tar", "--create", "--file", str(archive), "--directory", str(files), "--sort=name", "--numeric-owner"]
    command += ["--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=user.*"]
    done = subprocess.run(
        [*command, "."], capture_output=True, text=True, errors="replace", timeout=TAR_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise OSError(done.returncode, f"tar: {done.stderr.strip()[-500:]}")


def _whiteouts(files: Path) -> None:
    """From the marks of OCI layers to those of overlayfs."""
    for here, _, names in os.walk(files):
        for name in names:
            path = Path(here, name)
            if name == OPAQUE:
                path.unlink()
                layered.hide(here)
            elif name.startswith(WHITEOUT):
                path.unlink()
                layered.whiteout(path.with_name(name[len(WHITEOUT) :]))


def _start(config: Mapping[str, Any]) -> Configuration:
    own: Mapping[str, Any] = config.get("config") or {}
    words: Callable[[str], tuple[str, ...]] = lambda name: tuple(map(str, own.get(name) or ()))  # noqa: E731
    return Configuration(
        env=dict(entry.split("=", 1) for entry in own.get("Env") or () if "=" in entry),
        workdir=str(own.get("WorkingDir") or ""),
        entrypoint=words("Entrypoint"),
        cmd=words("Cmd"),
    )
