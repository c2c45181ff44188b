"""Engine: makes an image in the folder of images, and reads off what exactly is in it. The adapter to squall_images;
knows neither bus nor records."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlsplit

from squall.errors import ImageBuildError
from squall.http_api.protocol import blob_ref
from squall.spec import ImageSpec
from squall_builder.settings import BuilderSettings
from squall_builder.step_volumes import StepVolumes, Token
from squall_images import egress, pip_layer
from squall_images.bases import Bases
from squall_images.build_limits import StepLimits
from squall_images.distribution import Distribution
from squall_images.dockerfile_steps import Dockerfiles
from squall_images.egress import Address, EgressRules
from squall_images.environments import EnvironmentStore
from squall_images.eviction import Freed, Unwanted
from squall_images.host_base import HostBases
from squall_images.keys import plan
from squall_images.layered import LayeredImage, LayerFolder
from squall_images.machine_packages import needs_sandbox
from squall_images.outward import Guard
from squall_images.registry import Registry, place_of, read_auths
from squall_images.step_secrets import Secrets
from squall_images.step_volumes import Volumes
from squall_images.store import BuildSettings, LayerStore, Timed
from squall_service import bundles
from squall_service.blobs import Blobs, FolderStore, GatewayStore
from squall_service.telemetry import log

MEMBER_LIMITS = bundles.Limits(files=1_000_000, total_bytes=64 * 1024**3)
"""Of files that images copy: weights of models are among them."""

_files_of: ContextVar[str] = ContextVar("_files_of")
"""A workspace, of the build that runs in this context: the stores of images know none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A finished image."""

    lock: tuple[str, ...]
    """`name==version` of everything in it, sorted."""
    python: str
    """The interpreter's version, such as "3.11"; empty for an image without one."""
    layers: tuple[str, ...] = ()
    """Keys of its layers, bottom first; empty for an environment."""
    manifest: str = ""
    """Digest of its manifest in the registry; empty if it is in none."""


class Engine:
    """The image builder of one folder."""

    def __init__(self, settings: BuilderSettings, bus_url: str = "") -> None:
        settings.images_dir.mkdir(parents=True, exist_ok=True)
        self._formats = settings.formats
        self._environments = EnvironmentStore(settings.images_dir)
        self._folder = folder = LayerFolder(settings.images_dir)
        self._limit_bytes = int(settings.keep_gib * (1 << 30))
        self._cache_bytes = int(settings.cache_gib * (1 << 30))
        own = FolderStore(Path(settings.blob_dir)) if settings.blob_dir else None
        self._blobs = Blobs(own or GatewayStore(settings.gateway_url, settings.token))
        self._gateway_url = settings.gateway_url
        rules = _rules(settings, bus_url)
        self._share = Distribution(
            folder=folder,
            registry=Registry(read_auths(settings.registry_auth)),
            default=settings.registry,
            guard=Guard(rules=rules, trusted=_named_by_the_operator(settings)),
            shared=tuple(settings.registry_shared),
            limit_mib=settings.step_disk_mib,
            pull_s=settings.step_timeout_s,
        )
        dockerfiles = None
        if settings.docker_host:
            dockerfiles = Dockerfiles(
                folder, settings.docker_host, settings.docker_network, self._fetch, settings.step_timeout_s
            )
        self._dockerfiles = dockerfiles
        self._layers = LayerStore(
            settings.images_dir,
            bases=Bases(
                folder,
                pull=self._share.pull,
                debian_slim=settings.debian_slim,
                of_host=HostBases(folder) if settings.host_bases else None,
                stand_in=settings.host_bases and not settings.registry,
                dockerfile=None if dockerfiles is None else dockerfiles.base,
            ),
            dockerfiles=dockerfiles,
            fetch=self._fetch,
            share=self._share,
            settings=BuildSettings(rules=rules, limits=_limits(settings), step_timeout_s=settings.step_timeout_s),
        )

    @staticmethod
    def takes_files_of(workspace: str) -> None:
        """What this task builds from now on has files of that workspace."""
        _files_of.set(workspace)

    def volumes(self, workspace: str, token: Token) -> Volumes:
        """Those of a workspace, for build steps."""
        own = StepVolumes(blobs=self._blobs, gateway_url=self._gateway_url, workspace=workspace, token=token)
        return own.bringing

    async def build(
        self,
        spec: ImageSpec,
        on_line: Callable[[str], None],
        secrets: Secrets,
        timed: Timed,
        volumes: Volumes,
        *,
        missed: bool = False,
    ) -> Built:
        """Make the image unless it is there; `missed`: by a machine, and so as layers, as machines make environments
        themselves. Raises `ImageBuildError` with step, output and exit code."""
        built = None
        layers, environment = self._wanted(spec, missed)
        if layers:
            with self._layers.pinned(spec.id):
                image = await self._layers.ensure(spec, on_line, secrets, timed, volumes)
                built = await asyncio.to_thread(_described, image)
                began = time.time_ns()
                built = replace(built, manifest=await self._store(spec.id, on_line))
            if built.manifest:
                timed("push", spec.id, began, time.time_ns())
        if environment:
            made = await self._environments.ensure(spec, on_line)
            if warning := plan(spec).stands_in:
                on_line(warning)
            lock = await asyncio.to_thread(exact_packages, made.site_packages)
            built = built or Built(lock=lock, python=spec.python_version)
        assert built is not None
        return built

    def _wanted(self, spec: ImageSpec, missed: bool) -> tuple[bool, bool]:
        """Whether the image is made as layers, and whether as an environment."""
        match self._formats:
            case "environments":
                return False, True
            case "layers":
                return True, False
            case "both":
                return True, not spec.needs_root
            case "needed":
                layers = needs_sandbox(spec) or missed
                return layers, not layers

    async def has(self, image_id: str, manifest: str) -> bool:
        """Whether the machines that want an image can have it; also where that cannot be told at the moment."""
        if self._formats == "environments":
            return True  # whoever needs an environment makes it
        if not self._share.default:
            return self._folder.described(image_id) is not None
        try:
            return await self._share.whole(image_id, manifest)
        except ImageBuildError as error:
            log.warning("image_not_looked_for", image=image_id, reason=error.message)
            return True

    async def _store(self, image_id: str, on_line: Callable[[str], None]) -> str:
        """Let other machines have it; the digest by which they know it, empty without a registry."""
        if not self._share.default:
            return ""
        found = self._folder.described(image_id)
        if found is None:
            raise OSError(0, f"image {image_id} was removed before it was stored in the registry")
        return await self._share.push(found, on_line)

    async def look(self, unwanted: Unwanted, now: float) -> Freed:
        """What `prune` would remove."""
        return await self._layers.prune(unwanted, now, dry_run=True)

    async def prune(self, unwanted: Unwanted, now: float) -> Freed:
        """Remove images that nothing needs from this machine. Raises `OSError`."""
        return await self._layers.prune(unwanted, now, dry_run=False)

    def check_prunes(self) -> None:
        """Raises `ImageBuildError` where nothing can be pruned."""
        if self._formats == "environments":
            raise ImageBuildError(
                f"its images are environments of plain processes, which are not pruned: stop the platform and remove "
                f"{self._folder.home}/envs"
            )

    async def withdraw(self, image_id: str, manifest: str) -> bool:
        """Let no machine get it from the registry any more, where that is possible. Raises `ImageBuildError`."""
        return bool(self._share.default and manifest) and await self._share.forget(image_id, manifest)

    async def sweep(self, now: float) -> Freed:
        """Keep the folder of layers within its size, and the caches beside it."""
        await self._layers.sweep_caches(self._cache_bytes)
        freed = await self._layers.sweep(self._limit_bytes, now)
        if self._dockerfiles is not None:
            await self._dockerfiles.sweep()
        return freed

    async def _fetch(self, reference: Mapping[str, object], folder: Path) -> None:
        """Files of a step, from the blob store."""
        archive = folder.with_suffix(".zip")
        try:
            blobs = self._blobs.of(_files_of.get())
            await blobs.fetch(blob_ref(str(reference["sha256"]), int(str(reference["bytes"]))), archive)
            await asyncio.to_thread(bundles.extract, archive, folder, MEMBER_LIMITS)
        except (KeyError, ValueError) as error:
            raise ImageBuildError(f"a step does not say where its files are: {error!r}") from error
        finally:
            archive.unlink(missing_ok=True)


def _named_by_the_operator(settings: BuilderSettings) -> frozenset[str]:
    """Registries whose addresses are none of users' choice."""
    return frozenset({place_of("x", settings.registry).url}) if settings.registry else frozenset()


def _limits(settings: BuilderSettings) -> StepLimits:
    return StepLimits(
        memory_mib=settings.step_memory_mib, processes=settings.step_processes, disk_mib=settings.step_disk_mib
    )


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
