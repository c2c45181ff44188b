"""The process backend: containers are processes in uv environments. No isolation, no root, no daemon needed.

Owns one data folder and every process below its warden. Cold starts: a fork of the function's template where that is
safe (policy/templates.py), else a fresh interpreter. `process` is not isolation: a container can read and change what
its user can; limits on memory are polled, processors are not limited at all.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import ImageSpec
from squall_gpu_agent.backend import (
    Capabilities,
    Container,
    ContainerRequest,
    Inside,
    Isolation,
    Log,
    NoTemplate,
    OnLog,
    OnText,
    Root,
    StartFailed,
    StartFailureKind,
    Template,
)
from squall_gpu_agent.backends import launch, sdk_files
from squall_gpu_agent.backends.bundle_view import needs_view
from squall_gpu_agent.backends.control import ControlClosed
from squall_gpu_agent.backends.launch import Paths, Wanted
from squall_gpu_agent.backends.phases import Timeline
from squall_gpu_agent.backends.process_container import Limits, ProcessContainer
from squall_gpu_agent.backends.process_starter import Ends, Starter, cleanup
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.backends.template_pool import TemplatePool
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.policy import templates
from squall_gpu_agent.policy.templates import Seen, StartPlainly, TemplateReport, template_key
from squall_gpu_agent.runner_link import RunnerLink
from squall_gpu_agent.runner_words import Ready, StartError
from squall_images.environments import Environment, EnvironmentStore

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


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


class ProcessBackend:
    """See `squall_gpu_agent.backend.Backend`."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._paths = Paths(data=settings.data_dir.absolute())
        images = settings.images_dir or settings.data_dir / "images"
        self._environments = EnvironmentStore(images.absolute(), settings.uv)
        self._starter = Starter(self._paths)
        self._templates = TemplatePool(settings.max_templates)
        self._containers: set[ProcessContainer] = set()
        self._view_reasons: dict[Path, str | None] = {}
        self._sdk: SdkFiles | None = None
        self._opening = asyncio.Lock()
        self._numbers = itertools.count(1)
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
                huge_pages=await asyncio.to_thread(_huge_pages),
                notes=("containers are plain processes: no isolation", *([refused] if refused else [])),
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
        )

    async def template(self, request: ContainerRequest, on_log: OnLog) -> Template | NoTemplate:
        """See `Backend.template`."""
        timeline = Timeline(time.time_ns())
        async with _starting(request, timeline):
            return await self._template(await self._wanted(request, on_log), on_log, timeline)

    async def start(self, request: ContainerRequest, on_log: OnLog) -> Container:
        """See `Backend.start`."""
        timeline = Timeline(time.time_ns())
        async with _starting(request, timeline):
            return await self._start(request, on_log, timeline)

    async def close(self) -> None:
        """See `Backend.close`."""
        ends = [container.wait() for container in self._containers]
        for container in list(self._containers):
            container.kill("killed: the agent stops")
        self._templates.kill_all()
        await asyncio.gather(*ends)
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
        with _as_start_failure():
            return await self._environments.ensure(image, on_log)

    async def _wanted(self, request: ContainerRequest, on_log: OnLog) -> Wanted:
        sdk = await self._opened()

        def on_line(line: str) -> None:
            on_log(Log(container=request.container_id, stream="system", text=line + "\n"))

        environment = await self._environment(request.spec.image, on_line)
        if request.code_dir not in self._view_reasons:
            self._view_reasons[request.code_dir] = await asyncio.to_thread(needs_view, str(request.code_dir))
        return Wanted(
            name=request.container_id,
            request=request,
            environment=environment,
            sdk=sdk,
            view_reason=self._view_reasons[request.code_dir],
            paths=self._paths,
            path_variable=self._settings.path,
        )

    async def _start(self, request: ContainerRequest, on_log: OnLog, timeline: Timeline) -> Container:
        wanted = await self._wanted(request, on_log)
        timeline.until("image.ensure", time.time_ns())
        found = await self._template(wanted, on_log, timeline)
        launch.prepare_scratch(wanted)
        link = RunnerLink(wanted.name, wanted.scratch, self._paths.results, on_log)
        container = ProcessContainer(
            wanted.name, wanted.scratch, link, Limits(memory_mib=request.spec.resources.memory_limit_mib)
        )
        if wanted.view_reason is None:  # mounts belong to the runner's own namespace
            container.inside = Inside(start=partial(self._starter.start_beside, wanted))
        self._containers.add(container)
        container.on_ended = self._ended
        try:
            await self._launch(wanted, found, container, link)
            timeline.until("sandbox.create", time.time_ns())
            container.watch_memory()
            await self._ready(container, link, timeline)
        except BaseException:
            container.kill("killed: its start was given up")
            if not container.pid:
                container.exited(None)
            raise
        container.phases = timeline.phases
        return container

    async def _launch(
        self, wanted: Wanted, found: ProcessTemplate | NoTemplate, container: ProcessContainer, link: RunnerLink
    ) -> None:
        """Start the process, by a fork or plainly, and connect the link to it."""
        ends = Ends(link.pipes)
        try:
            setup = None
            if isinstance(found, ProcessTemplate):
                setup = await self._fork(wanted, found, container, ends)
            if setup is None:
                container.why = found.reason if isinstance(found, NoTemplate) else "its template has just ended"
                setup = await self._start_fresh(wanted, container, ends)
            await link.open(ends.ours, setup)
        except BaseException:
            ends.ours.close()
            raise
        finally:
            ends.close_theirs()

    async def _fork(
        self, wanted: Wanted, template: ProcessTemplate, container: ProcessContainer, ends: Ends
    ) -> dict[str, Any] | None:
        """The SETUP of a container that was just forked; None if the template has ended."""
        try:
            container.pid = await template.fork(ends.theirs, container.exited)
        except ForkFailed:
            return None
        container.how = "fork"
        self._starter.adopt(container.pid, container.exited)
        own = launch.own_variables(wanted)
        return launch.setup(wanted, own, whole_env=False, template=False, forked=True)

    async def _start_fresh(self, wanted: Wanted, container: ProcessContainer, ends: Ends) -> dict[str, Any]:
        """The SETUP of a container whose process was just started."""
        shared, own = launch.shared_variables(wanted), launch.own_variables(wanted)
        started = await self._starter.start(wanted, shared, ends.theirs, container.exited)
        container.pid, container.how = started.pid, "fresh"
        env = {**shared, **own} if started.whole_env else own
        return launch.setup(wanted, env, whole_env=started.whole_env, template=False, forked=False)

    async def _ready(self, container: ProcessContainer, link: RunnerLink, timeline: Timeline) -> None:
        """Wait for the runner's word that it takes inputs. Raises `StartFailed`."""
        match await link.started:
            case Ready() as ready:
                timeline.reported(ready.booted_ns, ready.phases, time.time_ns())
            case StartError() as error:
                timeline.reported(error.booted_ns, error.phases, time.time_ns())
                raise _user_error(error)
            case None:
                end = await container.wait()
                raise StartFailed(StartFailureKind.USER_CODE, f"the container ended while it started: {end.reason}")

    def _ended(self, container: ProcessContainer) -> None:
        self._containers.discard(container)
        self._starter.ended(container.pid, container.id)

    # --- templates ---

    async def _template(self, wanted: Wanted, on_log: OnLog, timeline: Timeline) -> ProcessTemplate | NoTemplate:
        request = wanted.request
        verdict = templates.wanted(request.spec)
        if isinstance(verdict, StartPlainly):
            return NoTemplate(reason=verdict.reason)
        seen = Seen(
            app=request.app_id,
            function=request.function_id,
            image=str(wanted.environment.prefix),
            env=launch.template_variables(wanted),
            env_version=request.env_version,
            params=request.params,
        )
        key = template_key(request.spec, seen)
        return await self._templates.get(key, lambda: self._make_template(key, wanted, on_log, timeline))

    async def _make_template(
        self, key: str, wanted: Wanted, on_log: OnLog, timeline: Timeline
    ) -> ProcessTemplate | NoTemplate:
        template = await self._start_template(key, wanted, on_log)
        usable = False
        try:
            answer = await template.ready
            if answer is not None:
                timeline.reported(answer.booted_ns, answer.phases, time.time_ns(), first="sandbox.create")
            match answer:
                case StartError() as error:
                    raise _user_error(error)
                case Ready(report=report):
                    verdict = templates.judge(_report(report), snapshot=wanted.request.spec.memory_snapshot)
                    if isinstance(verdict, StartPlainly):
                        return NoTemplate(reason=verdict.reason, lasting=True)
                case None:
                    return NoTemplate(reason="the template ended while it imported")
            usable = True
            template.initialised()
            return template
        finally:
            if not usable:
                template.kill()
                template.close()

    async def _start_template(self, key: str, wanted: Wanted, on_log: OnLog) -> ProcessTemplate:
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


@asynccontextmanager
async def _starting(request: ContainerRequest, timeline: Timeline) -> AsyncIterator[None]:
    """Within the function's startup timeout, and with the phases so far on every failure."""
    try:
        async with asyncio.timeout(request.spec.startup_timeout_s):
            with _as_start_failure():
                yield
    except TimeoutError:
        limit = f"{request.spec.startup_timeout_s:g}"
        message = f"the container was not ready within {limit} s (startup_timeout)"
        raise StartFailed(StartFailureKind.TIMEOUT, message, phases=timeline.phases) from None
    except StartFailed as failure:
        failure.phases = failure.phases or timeline.phases
        raise


@contextmanager
def _as_start_failure() -> Iterator[None]:
    """What adapters raise, as `StartFailed`."""
    try:
        yield
    except ImageBuildError as error:
        output = str(error.data.get("output", ""))
        raise StartFailed(StartFailureKind.IMAGE, f"{error.message} ({error.hint})", traceback=output) from error
    except (SpawnFailed, ControlClosed, OSError) as error:
        raise StartFailed(StartFailureKind.INFRA, str(error) or type(error).__name__) from error


def _huge_pages() -> bool:
    return HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text()


def _user_error(error: StartError) -> StartFailed:
    return StartFailed(
        StartFailureKind.USER_CODE,
        error.message,
        type_name=error.type_name,
        traceback=error.traceback,
        pickled=error.pickled,
    )


def _report(meta: Mapping[str, Any]) -> TemplateReport:
    return TemplateReport(
        threads=tuple(map(str, meta.get("threads", ("unknown", "unknown")))),
        descriptors=tuple(map(str, meta.get("descriptors", ()))),
        children=int(meta.get("children", 0)),
        shared_memory=tuple(map(str, meta.get("shared_memory", ()))),
    )
