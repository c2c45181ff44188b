"""Engine: makes an image in the folder of images, and reads off what exactly is in it. The adapter to squall_images;
knows neither bus nor records."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

from squall.errors import ImageBuildError
from squall.http_api import blob_ref
from squall.spec import ImageSpec
from squall_builder.settings import BuilderSettings
from squall_images import egress, pip_layer
from squall_images.bases import Bases
from squall_images.distribution import Distribution
from squall_images.egress import Address, EgressRules
from squall_images.environments import EnvironmentStore
from squall_images.eviction import Freed
from squall_images.layered import LayeredImage, LayerFolder
from squall_images.registry import Registry, read_auths
from squall_images.store import BuildSettings, LayerStore
from squall_service import bundles
from squall_service.blobs import Blobs, FolderStore, GatewayStore

MEMBER_LIMITS = bundles.Limits(files=1_000_000, total_bytes=64 * 1024**3)
"""Of files that images copy: weights of models are among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A finished image."""

    lock: tuple[str, ...]
    """`name==version` of everything in it, sorted."""
    python: str
    """The interpreter's version, such as "3.11"; empty for an image without one."""
    layers: tuple[str, ...] = ()
    """Keys of its layers, bottom first; empty for an environment."""


class Engine:
    """The image builder of one folder."""

    def __init__(self, settings: BuilderSettings, bus_url: str = "") -> None:
        settings.images_dir.mkdir(parents=True, exist_ok=True)
        self._formats = settings.formats
        self._environments = EnvironmentStore(settings.images_dir)
        self._folder = folder = LayerFolder(settings.images_dir)
        self._limit_bytes = int(settings.keep_gib * (1 << 30))
        own = FolderStore(Path(settings.blob_dir)) if settings.blob_dir else None
        self._blobs = Blobs(own or GatewayStore(settings.gateway_url, settings.token))
        registry = Registry(read_auths(settings.registry_auth))
        self._share = Distribution(folder=folder, registry=registry, default=settings.registry)
        self._layers = LayerStore(
            settings.images_dir,
            bases=Bases(folder, pull=self._share.pull, debian_slim=settings.debian_slim),
            fetch=self._fetch,
            share=self._share,
            settings=BuildSettings(rules=_rules(settings, bus_url), step_timeout_s=settings.step_timeout_s),
        )

    async def build(self, spec: ImageSpec, on_line: Callable[[str], None]) -> Built:
        """Make the image unless it is there. Raises `ImageBuildError` with step, output and exit code."""
        built = None
        if self._formats != "environments":
            image = await self._layers.ensure(spec, on_line)
            built = await asyncio.to_thread(_described, image)
            await self._store(spec.id, on_line)
        if self._formats == "environments" or (self._formats == "both" and not spec.needs_root):
            environment = await self._environments.ensure(spec, on_line)
            lock = await asyncio.to_thread(exact_packages, environment.site_packages)
            built = built or Built(lock=lock, python=spec.python_version)
        assert built is not None
        return built

    async def _store(self, image_id: str, on_line: Callable[[str], None]) -> None:
        """Let other machines have it."""
        found = self._folder.described(image_id)
        if self._share.default and found is not None:
            await self._share.push(found, on_line)

    async def sweep(self, now: float) -> Freed:
        """Keep the folder of layers within its size."""
        return await self._layers.sweep(self._limit_bytes, now)

    async def _fetch(self, reference: Mapping[str, object], folder: Path) -> None:
        """Files of a step, from the blob store."""
        archive = folder.with_suffix(".zip")
        try:
            await self._blobs.fetch(blob_ref(str(reference["sha256"]), int(str(reference["bytes"]))), archive)
            await asyncio.to_thread(bundles.extract, archive, folder, MEMBER_LIMITS)
        except (KeyError, ValueError) as error:
            raise ImageBuildError(f"a step does not say where its files are: {error!r}") from error
        finally:
            archive.unlink(missing_ok=True)


def _rules(settings: BuilderSettings, bus_url: str) -> EgressRules:
    """What builds may reach, as of this start: addresses of this machine and of the control plane are looked up now."""
    control = {address for url in (*bus_url.split(","), settings.gateway_url) for address in _addresses(url)}
    return EgressRules(
        allowed=egress.networks(settings.allowed),
        denied=egress.networks([*settings.denied, *map(str, control)]),
        own=egress.own_addresses(),
    )


def _addresses(url: str) -> set[Address]:
    host = urlsplit(url.strip() if "://" in url else f"//{url.strip()}").hostname
    if not host:
        return set()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {ipaddress.ip_address(str(place[4][0]).partition("%")[0]) for place in found}


def _described(image: LayeredImage) -> Built:
    lock: set[str] = set()
    if image.site_packages:
        folders = pip_layer.visible(image.layers, image.site_packages).values()
        for folder in folders:
            name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
            lock.add(f"{name.lower().replace('_', '-')}=={version}")
    keys = tuple(layer.parent.name for layer in image.layers)
    return Built(lock=tuple(sorted(lock)), python=image.python_version, layers=keys)


def exact_packages(site_packages: Path) -> tuple[str, ...]:
    """What is installed in a folder."""
    found = {
        f"{name.lower().replace('_', '-')}=={distribution.version}"
        for distribution in distributions(path=[str(site_packages)])
        if (name := distribution.metadata["Name"])
    }
    return tuple(sorted(found))
