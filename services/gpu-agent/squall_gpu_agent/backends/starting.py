"""Starting containers, whatever the isolation: template or not, the phases, what went wrong.

Owns the order of a start. How processes come to be is the backend's: `process.py`, `sandbox/backend.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from squall.errors import ImageBuildError
from squall.spec import digest
from squall_gpu_agent.backend import (
    Container,
    ContainerRequest,
    Exit,
    MountedVolume,
    NoTemplate,
    OnLog,
    StartFailed,
    StartFailureKind,
    Template,
)
from squall_gpu_agent.backends import launch, phases
from squall_gpu_agent.backends.control import ControlClosed
from squall_gpu_agent.backends.launch import Wanted
from squall_gpu_agent.backends.payload_container import full_disk
from squall_gpu_agent.backends.phases import Timeline
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.process_template import ForkFailed, ProcessTemplate
from squall_gpu_agent.backends.runner_container import RunnerContainer
from squall_gpu_agent.backends.template_pool import TemplatePool
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.policy import templates
from squall_gpu_agent.policy.templates import Seen, StartPlainly, TemplateReport, template_key
from squall_gpu_agent.runner_link import RunnerLink
from squall_gpu_agent.runner_words import Ready, StartError
from squall_images.eviction import Freed, Unwanted
from squall_images.store import ImageLost

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
W = TypeVar("W", bound=Wanted)
C = TypeVar("C", bound=RunnerContainer)
T = TypeVar("T", bound=ProcessTemplate)


class StartingBackend(Generic[W, C, T]):
    """The parts of `squall_gpu_agent.backend.Backend` that all backends have in common."""

    def __init__(self, max_templates: int) -> None:
        self._templates: TemplatePool[T] = TemplatePool(max_templates)
        self._containers: set[RunnerContainer] = set()
        self._numbers = itertools.count(1)
        self._states: dict[str, str] = {}
        """Keys of templates by what they are without the versions of their volumes."""
        self._writers: dict[str, NoTemplate] = {}
        """Likewise, of code that writes to its volumes when it is imported."""

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

    def images(self) -> tuple[str, ...]:
        """See `Backend.images`. None where nobody would choose a machine for them."""
        return ()

    async def sweep_images(self, now: float) -> None:
        """See `Backend.sweep_images`. Nothing, where a builder of the same machine does it."""

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """See `Backend.prune_images`. Environments of plain processes are not removed while they may be used."""
        return Freed((), (), 0, 0)

    # --- what differs ---

    async def _wanted(self, request: ContainerRequest, on_log: OnLog) -> W:
        """The request, with the image and all else that it needs found."""
        raise NotImplementedError

    async def _new_container(self, wanted: W, found: T | NoTemplate, on_log: OnLog) -> tuple[C, RunnerLink]:
        """A container that has its folders, and no process yet."""
        raise NotImplementedError

    def _ends(self, container: C, link: RunnerLink) -> Ends:
        """What its process is given, or was given when it was forked ahead."""
        return Ends(link.pipes)

    async def _fork_into(self, wanted: W, template: T, container: C, ends: Ends) -> None:
        """Fork the container from a template. Raises `ForkFailed` when the template has ended."""
        raise NotImplementedError

    async def _start_fresh(self, wanted: W, container: C, ends: Ends) -> dict[str, Any]:
        """Start the container's process; returns its SETUP."""
        raise NotImplementedError

    async def _start_template(self, key: str, wanted: W, on_log: OnLog) -> T:
        """A process that will import the code, and was told to."""
        raise NotImplementedError

    def _image_phase(self, wanted: W) -> str:
        """What was done about the image."""
        return phases.IMAGE

    def _ended(self, container: RunnerContainer) -> None:
        """A container has ended."""
        raise NotImplementedError

    def _no_templates(self, wanted: W) -> str:
        """Why containers of this kind are never forked; "" where they may be."""
        return ""

    def _written_volume(self, wanted: W, template: T) -> str:
        """A volume that a template has written to, by its mount point; "" if there is none."""
        return ""

    def _disks(self, wanted: W) -> Mapping[str, int]:
        """What of a container is its own to write to: mount points as its code sees them, and MiB."""
        return {}

    def _running(self, container: C) -> None:
        """A container has its process."""

    async def _limit(self, wanted: W, container: C) -> None:
        """A container is ready: what was put off in order not to slow its start."""

    # --- a container ---

    async def _kill_containers(self) -> None:
        ends = [container.wait() for container in self._containers]
        for container in list(self._containers):
            container.kill("killed: the agent stops")
        self._templates.kill_all()
        await asyncio.gather(*ends)

    async def _start(self, request: ContainerRequest, on_log: OnLog, timeline: Timeline) -> Container:
        wanted = await self._wanted(request, on_log)
        timeline.until(self._image_phase(wanted), time.time_ns())
        found = await self._template(wanted, on_log, timeline)
        container, link = await self._new_container(wanted, found, on_log)
        self._containers.add(container)
        container.on_ended = self._forget
        try:
            await self._launch(wanted, found, container, link)
            timeline.until("sandbox.create", time.time_ns())
            self._running(container)
            await self._ready(wanted, container, link, timeline)
            await self._limit(wanted, container)
        except BaseException:
            container.kill("killed: its start was given up")
            if not container.pid:
                container.exited(None)
            raise
        container.phases = timeline.phases
        return container

    async def _launch(self, wanted: W, found: T | NoTemplate, container: C, link: RunnerLink) -> None:
        """Start the process, by a fork or plainly, and connect the link to it."""
        ends = self._ends(container, link)
        try:
            setup = None
            if isinstance(found, NoTemplate):
                container.why = found.reason
            else:
                setup = await self._fork(wanted, found, container, ends)
            if setup is None:
                setup = await self._start_fresh(wanted, container, ends)
                container.how = "fresh"
            await link.open(ends.ours, setup)
        except BaseException:
            ends.ours.close()
            raise
        finally:
            ends.close_theirs()

    async def _fork(self, wanted: W, template: T, container: C, ends: Ends) -> dict[str, Any] | None:
        """The SETUP of a container that was just forked; None if that did not work."""
        try:
            await self._fork_into(wanted, template, container, ends)
        except ForkFailed as failed:
            container.why = str(failed)
            return None
        container.how = "fork"
        own = launch.own_variables(wanted)
        return launch.setup(wanted, own, whole_env=False, template=False, forked=True)

    async def _ready(self, wanted: W, container: C, link: RunnerLink, timeline: Timeline) -> None:
        """Wait for the runner's word that it takes inputs. Raises `StartFailed`."""
        match await link.started:
            case Ready() as ready:
                timeline.reported(ready.booted_ns, ready.phases, time.time_ns())
            case StartError() as error:
                timeline.reported(error.booted_ns, error.phases, time.time_ns())
                raise _user_error(error, self._disks(wanted))
            case None:
                end = await container.wait()
                kind = StartFailureKind.INFRA if _was_hurt(end) else StartFailureKind.USER_CODE
                if kind is StartFailureKind.INFRA and end.signal == signal.SIGKILL and not container.killed_here:
                    kind = StartFailureKind.KILLED
                raise StartFailed(kind, f"the container ended while it started: {end.reason}")

    def _forget(self, container: RunnerContainer) -> None:
        self._containers.discard(container)
        self._ended(container)

    # --- templates ---

    async def _template(self, wanted: W, on_log: OnLog, timeline: Timeline) -> T | NoTemplate:
        key = self._key_of_template(wanted)
        if isinstance(key, NoTemplate):
            return key
        found = await self._templates.get(key, lambda: self._make_template(key, wanted, on_log, timeline))
        if isinstance(found, NoTemplate):
            self._note_writer(key, found)
        return found

    def _key_of_template(self, wanted: W) -> str | NoTemplate:
        request = wanted.request
        verdict = templates.wanted(request.spec)
        if isinstance(verdict, StartPlainly):
            return NoTemplate(reason=verdict.reason)
        if request.buckets:
            return NoTemplate(reason="its buckets are mounted in each container by itself")
        if why := self._no_templates(wanted):
            return NoTemplate(reason=why)
        seen = Seen(
            app=request.app_id,
            function=request.function_id,
            image=wanted.image_key,
            env=launch.template_variables(wanted),
            env_version=request.env_version,
            params=request.params,
        )
        key = template_key(request.spec, seen)
        if request.volumes:
            if key in self._writers:
                return self._writers[key]
            return self._of_these_versions(key, request.volumes)
        return key

    def _note_writer(self, key: str, found: NoTemplate) -> None:
        if found.of_volumes:
            self._writers[key.partition(".")[0]] = found

    def _of_these_versions(self, key: str, volumes: Sequence[MountedVolume]) -> str:
        """Imports may read what volumes hold: each state of them has a template of its own, and only the latest."""
        versions = key + "." + digest([volume.manifest for volume in volumes])[:16]
        before = self._states.get(key)
        if before not in (None, versions):
            self._templates.retire(before)
        self._states[key] = versions
        return versions

    async def _make_template(self, key: str, wanted: W, on_log: OnLog, timeline: Timeline) -> T | NoTemplate:
        template = await self._start_template(key, wanted, on_log)
        usable = False
        try:
            answer = await template.ready
            if answer is not None:
                timeline.reported(answer.booted_ns, answer.phases, time.time_ns(), first="sandbox.create")
            match answer:
                case StartError() as error:
                    raise _user_error(error, self._disks(wanted))
                case Ready(report={"commits": True}):
                    reason = "its import or @enter(snap=True) commits or reloads a volume"
                    return NoTemplate(reason=reason, lasting=True, of_volumes=True)
                case Ready(report=report):
                    verdict = templates.judge(report_of(report), snapshot=wanted.request.spec.memory_snapshot)
                    if isinstance(verdict, StartPlainly):
                        return NoTemplate(reason=verdict.reason, lasting=True)
                    if written := self._written_volume(wanted, template):
                        reason = f"its import writes to its volume at {written}"
                        return NoTemplate(reason=reason, lasting=True, of_volumes=True)
                case None:
                    return NoTemplate(reason="the template ended while it imported")
            usable = True
            template.initialised()
            return template
        finally:
            if not usable:
                template.kill()
                template.close()


@asynccontextmanager
async def _starting(request: ContainerRequest, timeline: Timeline) -> AsyncIterator[None]:
    """Within the function's startup timeout, and with the phases so far on every failure."""
    try:
        async with asyncio.timeout(request.spec.startup_timeout_s):
            with as_start_failure():
                yield
    except TimeoutError:
        limit = f"{request.spec.startup_timeout_s:g}"
        message = f"the container was not ready within {limit} s (startup_timeout)"
        raise StartFailed(StartFailureKind.TIMEOUT, message, phases=timeline.phases) from None
    except StartFailed as failure:
        failure.phases = failure.phases or timeline.phases
        raise


@contextmanager
def as_start_failure() -> Iterator[None]:
    """What adapters raise, as `StartFailed`."""
    try:
        yield
    except ImageLost as error:
        raise StartFailed(StartFailureKind.IMAGE_LOST, f"{error.message} ({error.hint})") from error
    except ImageBuildError as error:
        output = str(error.data.get("output", ""))
        raise StartFailed(StartFailureKind.IMAGE, f"{error.message} ({error.hint})", traceback=output) from error
    except (SpawnFailed, ControlClosed, OSError) as error:
        raise StartFailed(StartFailureKind.INFRA, str(error) or type(error).__name__) from error


def huge_pages() -> bool:
    return HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text()


def _was_hurt(end: Exit) -> bool:
    """Code ends by itself, by a fault of its own, or for want of memory; who kills it otherwise, or takes its template
    with it, is of the machine or its operator."""
    return end.code is None and end.signal in (None, signal.SIGKILL) and not end.oom


def _user_error(error: StartError, disks: Mapping[str, int]) -> StartFailed:
    if error.disk is not None and (limit_mib := disks.get(error.disk.place)):
        disk = error.disk._replace(limit_mib=limit_mib)
        full = f"{full_disk(disk, error.message)}; give the function more with ephemeral_disk= (MiB), or write less"
        return StartFailed(
            StartFailureKind.USER_CODE, full, type_name=error.type_name, traceback=error.traceback, disk=disk
        )
    return StartFailed(
        StartFailureKind.USER_CODE,
        error.message,
        type_name=error.type_name,
        traceback=error.traceback,
        pickled=error.pickled,
    )


def report_of(meta: Mapping[str, Any]) -> TemplateReport:
    """What a process that is to be forked says about itself."""
    return TemplateReport(
        threads=tuple(map(str, meta.get("threads", ("unknown", "unknown")))),
        descriptors=tuple(map(str, meta.get("descriptors", ()))),
        children=int(meta.get("children", 0)),
        shared_memory=tuple(map(str, meta.get("shared_memory", ()))),
    )
