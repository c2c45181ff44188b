"""The process backend: containers are processes in uv environments. No isolation, no root, no daemon needed.

Owns one data folder and every process below its warden. Cold starts: a fork of the function's template where that is
safe (policy/templates.py), else a fresh interpreter. `process` is not isolation: a container can read and change what
its user can; limits on memory are polled, processors are not limited at all.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from squall.spec import ImageSpec
from squall_gpu_agent.backend import (
    Capabilities,
    ContainerRequest,
    Inside,
    Isolation,
    Log,
    NoTemplate,
    OnLog,
    OnText,
    Root,
)
from squall_gpu_agent.backends import launch, sdk_files
from squall_gpu_agent.backends.bundle_view import names_root, needs_view
from squall_gpu_agent.backends.launch import Paths, ProcessWanted
from squall_gpu_agent.backends.process_container import Limits, ProcessContainer
from squall_gpu_agent.backends.process_starter import Ends, Starter, cleanup
from squall_gpu_agent.backends.process_template import ProcessTemplate
from squall_gpu_agent.backends.runner_container import RunnerContainer
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.backends.starting import StartingBackend, as_start_failure, huge_pages
from squall_gpu_agent.buckets import joining
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.runner_link import RunnerLink
from squall_images.environments import Environment, EnvironmentStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """What the agent decides about this backend."""

    data_dir: Path
    """Everything lies below it, on one file system; shared by nobody else."""
    images_dir: Path | None = None
    """Environments and uv's cache; None = `<data_dir>/images`. May be shared with a builder on this machine."""
    uv: Path | None = None
    """None = the one of the agent's environment."""
    path: str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    """PATH of containers, after the image's own programs."""
    max_templates: int = 16
    """The least recently used one is retired above it."""
    note: str = ""
    """Why it is this backend, for operators."""


class ProcessBackend(StartingBackend[ProcessWanted, ProcessContainer, ProcessTemplate]):
    """See `squall_gpu_agent.backend.Backend`."""

    def __init__(self, settings: ProcessSettings) -> None:
        super().__init__(settings.max_templates)
        self._settings = settings
        self._paths = Paths(data=settings.data_dir.absolute())
        images = settings.images_dir or settings.data_dir / "images"
        self._environments = EnvironmentStore(images.absolute(), settings.uv)
        self._starter = Starter(self._paths)
        self._view_reasons: dict[Path, str | None] = {}
        self._sdk: SdkFiles | None = None
        self._opening = asyncio.Lock()
        self._capabilities: Capabilities | None = None

    # --- Backend ---

    async def probe(self) -> Capabilities:
        """See `Backend.probe`."""
        if self._capabilities is None:
            await self._opened()
            refused = await (await self._starter.warden()).probe_views(self._paths.containers)
            found = await self._environments.interpreters()
            self._capabilities = Capabilities(
                backend="process",
                isolation=Isolation.PROCESS,
                python_versions=tuple(sorted({p.minor for p in found}, key=lambda minor: int(minor.split(".")[1]))),
                mount_namespaces=not refused,
                huge_pages=await asyncio.to_thread(huge_pages),
                no_buckets=refused or await asyncio.to_thread(joining.unusable_here),
                notes=("containers are plain processes: no isolation", *filter(None, (self._settings.note, refused))),
            )
        return self._capabilities

    async def ensure_root(self, image: ImageSpec, on_log: OnText) -> Root:
        """See `Backend.ensure_root`."""
        environment = await self._environment(image, on_log)
        await self._starter.bare(environment, await self._opened())  # so that the first start finds it
        return Root(
            image_id=environment.image_id,
            python=environment.python,
            site_packages=environment.site_packages,
            env=environment.env,
            workdir=environment.workdir,
        )

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._kill_containers()
        await self._starter.close()

    # --- parts ---

    async def _opened(self) -> SdkFiles:
        """The platform's files for containers; the first call makes the folders."""
        async with self._opening:
            if self._sdk is None:
                self._sdk = await asyncio.to_thread(self._open_folders)
            return self._sdk

    def _open_folders(self) -> SdkFiles:
        for folder in (self._paths.containers, self._paths.results):
            shutil.rmtree(folder, ignore_errors=True)  # of an agent that was killed; its processes are gone too
        for folder in (self._paths.containers, self._paths.results, self._paths.home):
            folder.mkdir(parents=True, exist_ok=True)
        return sdk_files.install(self._paths.data)

    async def _environment(self, image: ImageSpec, on_log: OnText) -> Environment:
        with as_start_failure():
            return await self._environments.ensure(image, on_log)

    async def _wanted(self, request: ContainerRequest, on_log: OnLog) -> ProcessWanted:
        sdk = await self._opened()

        def on_line(line: str) -> None:
            on_log(Log(container=request.container_id, stream="system", text=line + "\n"))

        environment = await self._environment(request.spec.image, on_line)
        if request.code_dir not in self._view_reasons:
            self._view_reasons[request.code_dir] = await self._view_reason(str(request.code_dir))
        return ProcessWanted(
            name=request.container_id,
            request=request,
            environment=environment,
            sdk=sdk,
            view_reason=_mounted_at(request) or self._view_reasons[request.code_dir],
            paths=self._paths,
            path_variable=self._settings.path,
        )

    async def _view_reason(self, code_dir: str) -> str | None:
        needed = await asyncio.to_thread(needs_view, code_dir)
        if needed is None and (await self.probe()).mount_namespaces:
            return await asyncio.to_thread(names_root, code_dir)
        return needed

    def _no_templates(self, wanted: ProcessWanted) -> str:
        """See `StartingBackend._no_templates`."""
        return (
            "its volumes are mounted in a namespace of its own, which a fork would share"
            if _mounted_at(wanted.request)
            else ""
        )

    async def _new_container(
        self, wanted: ProcessWanted, found: ProcessTemplate | NoTemplate, on_log: OnLog
    ) -> tuple[ProcessContainer, RunnerLink]:
        launch.prepare_scratch(wanted)
        link = RunnerLink(wanted.name, wanted.scratch, self._paths.results, on_log)
        limits = Limits(memory_mib=wanted.request.spec.resources.memory_limit_mib)
        container = ProcessContainer(wanted.name, wanted.scratch, link, limits)
        if wanted.view_reason is None:  # mounts belong to the runner's own namespace
            container.inside = Inside(start=partial(self._starter.start_beside, wanted))
        return container, link

    async def _fork_into(
        self, wanted: ProcessWanted, template: ProcessTemplate, container: ProcessContainer, ends: Ends
    ) -> None:
        container.pid = await template.fork(ends.theirs, container.exited)
        self._starter.adopt(container.pid, container.exited)

    async def _start_fresh(self, wanted: ProcessWanted, container: ProcessContainer, ends: Ends) -> dict[str, Any]:
        shared, own = launch.shared_variables(wanted), launch.own_variables(wanted)
        started = await self._starter.start(wanted, shared, ends.theirs, container.exited)
        container.pid = started.pid
        env = {**shared, **own} if started.whole_env else own
        return launch.setup(wanted, env, whole_env=started.whole_env, template=False, forked=False)

    def _running(self, container: ProcessContainer) -> None:
        container.watch_memory()

    def _ended(self, container: RunnerContainer) -> None:
        self._starter.ended(container.pid, container.id)

    async def _start_template(self, key: str, wanted: ProcessWanted, on_log: OnLog) -> ProcessTemplate:
        own = replace(wanted, name=f"{key}-{next(self._numbers)}")
        await asyncio.to_thread(launch.prepare_scratch, own)
        container = wanted.name

        def on_text(stream: str, text: str) -> None:
            on_log(Log(container=container, stream=stream, text=text))

        pipes = Pipes(on_text)
        ends = Ends(pipes)
        template = ProcessTemplate(key, ends.ours, container, on_log)
        clean = cleanup(pipes, own.scratch)

        def on_exit(status: int | None) -> None:
            self._starter.forget(template.pid)
            clean(status)

        variables = launch.template_variables(own)
        try:
            started = await self._starter.start(own, variables, ends.theirs, on_exit)
            template.pid = started.pid
            env = variables if started.whole_env else {}
            template.setup(launch.setup(own, env, whole_env=started.whole_env, template=True, forked=False))
        except BaseException:
            template.kill()
            template.close()
            on_exit(None)
            raise
        finally:
            ends.close_theirs()
        return template


def _mounted_at(request: ContainerRequest) -> str | None:
    """The first folder that is a mount; None if there is none."""
    places = [*(volume.mount.path for volume in request.volumes), *(bucket.path for bucket in request.buckets)]
    return places[0] if places else None
