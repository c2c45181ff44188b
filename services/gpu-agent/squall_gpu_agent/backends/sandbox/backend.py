"""The sandbox backend: containers in namespaces of their own, over the layers of their image.

Owns one data folder, one group of control groups, and everything below its launcher. Cold starts: a fork of the
function's template into a slot that was made ahead, where that is safe (policy/templates.py), else a fresh interpreter.
What isolates is in launcher.py, first.py, filesystem.py and squall_isolation; docs/explanation/isolation.md says how.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from squall.spec import ImageSpec
from squall_gpu_agent import cdi
from squall_gpu_agent.backend import Capabilities, Inside, Isolation, Log, NoTemplate, OnLog, OnText, Root
from squall_gpu_agent.backends import launch, phases
from squall_gpu_agent.backends.control import ControlClosed
from squall_gpu_agent.backends.process_starter import BARE_START_TIMEOUT_S, Ends
from squall_gpu_agent.backends.process_template import ForkFailed
from squall_gpu_agent.backends.runner_container import RunnerContainer
from squall_gpu_agent.backends.sandbox import disks, first, kernel
from squall_gpu_agent.backends.sandbox.container import SandboxContainer
from squall_gpu_agent.backends.sandbox.forks import Ahead, Fork, KeptForks
from squall_gpu_agent.backends.sandbox.settings import WRITABLE_MIB, Roots, SandboxSettings
from squall_gpu_agent.backends.sandbox.slot_backend import SlotBackend
from squall_gpu_agent.backends.sandbox.template import BareInterpreter, SandboxParent, SandboxTemplate
from squall_gpu_agent.backends.sandbox.wanted import BARE, SDK, SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Run
from squall_gpu_agent.backends.starting import as_start_failure, huge_pages, report_of
from squall_gpu_agent.backends.template_pool import TemplatePool
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.buckets import joining
from squall_gpu_agent.pipes import Pipes
from squall_gpu_agent.policy import templates
from squall_gpu_agent.policy.templates import StartPlainly
from squall_gpu_agent.runner_link import RunnerLink
from squall_gpu_agent.runner_words import Ready, StartError
from squall_images.eviction import Freed, Unwanted
from squall_isolation import seccomp
from squall_service.telemetry import log

_NO_CODE = {"template": True}
"""SETUP of a bare interpreter."""
SAID_LINES, SAID_CHARACTERS = 5, 500
"""Of what a bare interpreter wrote, where it came to nothing."""


class SandboxBackend(SlotBackend):
    """See `squall_gpu_agent.backend.Backend`."""

    isolation = Isolation.SANDBOX
    bare_interpreters = True
    """Whether containers without a template are forked, too: from an interpreter that has imported nobody's code."""
    no_gpus = ""
    """Why its containers cannot have devices; "" = they can."""

    def __init__(self, settings: SandboxSettings, roots: Roots) -> None:
        super().__init__(settings, roots)
        self._bare: TemplatePool[BareInterpreter] = TemplatePool(settings.max_templates)
        self._kept = KeptForks(settings.max_templates)

    # --- Backend ---

    async def probe(self) -> Capabilities:
        """See `Backend.probe`. Raises `StartFailed` when sandboxes do not work here."""
        if self._capabilities is None:
            with as_start_failure():
                await self._try_a_slot()
                versions = await self._roots.python_versions()
            no_disks = await asyncio.to_thread(disks.trouble, self._data)
            no_disks = no_disks and f"no disks of more than {WRITABLE_MIB} MiB: {no_disks}"
            no_network = self._no_network if self._networks is None else ""
            self._capabilities = Capabilities(
                backend=self.name,
                isolation=self.isolation,
                python_versions=versions,
                mount_namespaces=True,
                huge_pages=await asyncio.to_thread(huge_pages),
                no_disks=no_disks,
                no_buckets=await asyncio.to_thread(self._no_buckets),
                no_gpus=self.no_gpus,
                notes=(*self._notes, *filter(None, (no_network, no_disks))),
            )
        return self._capabilities

    def _no_buckets(self) -> str:
        """Why containers cannot have buckets mounted; "" if they can."""
        if self._settings.network is None:
            return self._no_network
        return joining.unusable_here()

    async def ensure_root(self, image: ImageSpec, on_log: OnText) -> Root:
        """See `Backend.ensure_root`."""
        with as_start_failure():
            return await self._roots.ensure_root(image, on_log)

    def images(self) -> tuple[str, ...]:
        """See `Backend.images`."""
        return self._roots.here()

    async def sweep_images(self, now: float) -> None:
        """See `Backend.sweep_images`."""
        freed = await self._roots.sweep(now)
        if freed.layers:
            log.info("layers_removed", images=len(freed.images), layers=len(freed.layers), bytes=freed.bytes)

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """See `Backend.prune_images`."""
        return await self._roots.prune(unwanted, now, dry_run=dry_run)

    async def close(self) -> None:
        """See `Backend.close`."""
        self._bare.kill_all()
        await self._kill_containers()
        if self._open_parts is not None:
            await self._open_parts.launcher.close()
            await asyncio.to_thread(self._open_parts.groups.close)
            self._open_parts = None
        if self._networks is not None:
            await asyncio.to_thread(self._networks.close)
        await asyncio.to_thread(shutil.rmtree, self._data / "slots", True)
        self._roots.close()

    # --- StartingBackend ---

    async def _new_container(
        self, wanted: SandboxWanted, found: SandboxTemplate | NoTemplate, on_log: OnLog
    ) -> tuple[SandboxContainer, RunnerLink]:
        await self._opened()
        nowhere = self._data / "nothing"
        link = RunnerLink(wanted.name, nowhere, nowhere, on_log)
        container = self._container(wanted.name, link)
        if isinstance(found, SandboxTemplate):
            container.fork = await self._fork_of(wanted, found, found.ahead)
        elif isinstance(bare := await self._bare_interpreter(wanted), BareInterpreter):
            container.fork = await self._fork_of(wanted, bare, self._ahead_of(wanted, bare))
        elif bare is not None:
            container.not_forked = bare.reason
        if container.fork is not None:
            container.prepare(container.fork.slot)
        container.inside = Inside(start=partial(container.enter, wanted))
        return container, link

    async def _fork_of(self, wanted: SandboxWanted, parent: SandboxParent, ahead: Ahead | None) -> Fork:
        if ahead is not None:
            return ahead.take()
        disk = await self._disk(wanted)
        try:
            return Fork.in_new_slot(parent, lambda: self._slot(wanted, None, [], parent.slot.name, disk))
        except BaseException:  # perhaps there was no slot yet to have it
            if disk is not None:
                disk.close()
            raise

    def _ahead_of(self, wanted: SandboxWanted, bare: BareInterpreter) -> Ahead | None:
        """Forks ahead for a function without a template; None where each of its containers is different."""
        if not wanted.slots_are_alike:
            return None
        return bare.ahead_of(wanted.slot_key, lambda: self._slot(wanted, None, [], bare.slot.name))

    def _container(self, name: str, link: RunnerLink) -> SandboxContainer:
        return SandboxContainer(name, link)

    def _ends(self, container: SandboxContainer, link: RunnerLink) -> Ends:
        """See `StartingBackend._ends`."""
        if container.fork is None:
            return Ends(link.pipes)
        container.fork.ends.attach(link.pipes)
        return container.fork.ends

    async def _fork_into(
        self, wanted: SandboxWanted, template: SandboxTemplate, container: SandboxContainer, ends: Ends
    ) -> None:
        assert container.fork is not None
        await container.become(container.fork)

    async def _start_fresh(self, wanted: SandboxWanted, container: SandboxContainer, ends: Ends) -> dict[str, Any]:
        variables = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        if container.fork is not None and isinstance(container.fork.parent, BareInterpreter):
            try:
                await container.become(container.fork)
                return launch.setup(wanted, variables, whole_env=True, template=False, forked=False)
            except ForkFailed as failed:
                container.not_forked = f"not forked from a bare interpreter: {failed}"
        if container.not_forked:
            container.why = f"{container.why}; {container.not_forked}"
        if container.fork is not None:  # what was refused may live, and has what it was forked with
            log.warning("fork_failed", container=container.id, reason=container.why)
            container.fork = None
            ends.renew(container.pipes)
        argv = launch.command(wanted.root.python, SDK)
        container.move(self._slot(wanted, Run(argv, variables), ends.theirs, disk=await self._disk(wanted)))
        assert container.slot is not None
        container.pid = await container.slot.until_made()
        await container.slot.until_ready()
        return launch.setup(wanted, {}, whole_env=False, template=False, forked=False)

    async def _start_template(self, key: str, wanted: SandboxWanted, on_log: OnLog) -> SandboxTemplate:
        # A template must not have a device: no fork could share it.
        request = replace(wanted.request, gpus=(), gpu_env={})
        own = replace(wanted, name=f"{key}-{next(self._numbers)}", request=request, devices=cdi.NO_EDITS)
        container = wanted.name

        def on_text(stream: str, text: str) -> None:
            on_log(Log(container=container, stream=stream, text=text))

        pipes = Pipes(on_text)
        ends = Ends(pipes)
        template = SandboxTemplate(key, ends.ours, container, on_log)
        setup = launch.setup(own, {}, whole_env=False, template=True, forked=False)
        await self._start_parent(template, own, launch.template_variables(own), setup, ends, pipes)
        if wanted.slots_are_alike:
            template.ahead = Ahead(template, lambda: self._slot(wanted, None, [], inside=template.slot.name))
        return template

    async def _start_parent(
        self,
        parent: SandboxParent,
        own: SandboxWanted,
        variables: dict[str, str],
        setup: dict[str, Any],
        ends: Ends,
        pipes: Pipes,
    ) -> None:
        """Start its process, and tell it what to load."""
        try:
            await self._opened()
            argv = launch.command(own.root.python, SDK)
            run = Run(argv, variables, may_fork_into_slots=True)
            slot = self._slot(own, run, ends.theirs, disk=await self._disk(own))
        except BaseException:
            parent.close()
            pipes.close()
            raise
        finally:
            ends.close_theirs()
        parent.slot = slot
        slot.ended.add_done_callback(lambda _: pipes.close())
        slot.launcher.release(slot)
        try:
            parent.pid = await slot.until_made()
            await slot.until_ready()
            parent.setup({**setup, **_terms()})
        except BaseException:
            parent.kill()
            parent.close()
            raise

    # --- bare interpreters ---

    async def _bare_interpreter(self, wanted: SandboxWanted) -> BareInterpreter | NoTemplate | None:
        """Of its app and image, started if there is none; None where its container has to be started by itself."""
        if not self.bare_interpreters or wanted.needs_own_interpreter():
            return None
        key = wanted.interpreter_key
        found = await self._bare.get(key, lambda: self._make_bare(key, wanted))
        if isinstance(found, NoTemplate):
            log.warning("no_bare_interpreter", app=wanted.request.app_id, reason=found.reason)
        return found

    async def _make_bare(self, key: str, wanted: SandboxWanted) -> BareInterpreter | NoTemplate:
        said: deque[str] = deque(maxlen=SAID_LINES)
        pipes = Pipes(lambda _stream, text: said.extend(text.splitlines()))
        ends = Ends(pipes)
        name = f"{key}-{next(self._numbers)}"
        bare = BareInterpreter(key, ends.ours, name, self._kept)
        try:
            await self._start_parent(bare, wanted.bare(name, self._data / "nothing"), BARE, _NO_CODE, ends, pipes)
        except (SpawnFailed, ControlClosed, OSError) as error:
            return NoTemplate(reason=f"no bare interpreter: {error}")
        answer: Ready | StartError | None = None
        refused: NoTemplate | None = NoTemplate(reason="no bare interpreter: its start was given up")
        try:
            async with asyncio.timeout(BARE_START_TIMEOUT_S):
                answer = await bare.ready
            pipes.read_all()
            refused = _unfit(answer, said)
        except TimeoutError:
            pipes.read_all()
            refused = _told(f"it did not start within {BARE_START_TIMEOUT_S:g} s", said)
        finally:
            if refused is not None:
                bare.kill()
                bare.close()
        if refused is not None:
            return refused
        if isinstance(answer, Ready) and (trouble := answer.report.get("not_ahead")):
            log.warning("nothing_imported_ahead", app=wanted.request.app_id, reason=str(trouble))
        bare.initialised()
        return bare

    async def _limit(self, wanted: SandboxWanted, container: SandboxContainer) -> None:
        cores = wanted.request.spec.resources.cpu_limit
        if cores is not None and container.slot is not None:
            await asyncio.to_thread(container.slot.group.cap_cpu, cores)

    def _image_phase(self, wanted: SandboxWanted) -> str:
        return phases.PULL if wanted.root.pulled else phases.IMAGE

    def _written_volume(self, wanted: SandboxWanted, template: SandboxTemplate) -> str:
        """See `StartingBackend._written_volume`."""
        for overlay, volume in zip(template.slot.plan.overlays, wanted.request.volumes, strict=True):
            with os.scandir(os.path.join(overlay.above, "upper")) as entries:
                if next(entries, None) is not None:
                    return volume.mount.path
        return ""

    def _running(self, container: SandboxContainer) -> None:
        container.watch_disk()

    def _ended(self, container: RunnerContainer) -> None:
        """Nothing is left to sweep: the kernel ended all of its pid namespace."""


def _terms() -> dict[str, object]:
    """What forks of a template keep when they enter a slot."""
    mask = sum(1 << number for number in first.BASIC)
    return {"slot_capabilities": mask, "slot_filter": base64.b64encode(seccomp.program(kernel.MACHINE)).decode()}


def _told(reason: str, said: Iterable[str]) -> NoTemplate:
    """Why there is no bare interpreter, with the last that it wrote."""
    last = " | ".join(said)[-SAID_CHARACTERS:]
    return NoTemplate(reason=f"no bare interpreter: {reason}" + (f" (it wrote: {last})" if last else ""))


def _unfit(answer: Ready | StartError | None, said: Iterable[str]) -> NoTemplate | None:
    """Why a bare interpreter cannot be forked; None if it can."""
    match answer:
        case Ready(report=report):
            verdict = templates.judge(report_of(report))
            return NoTemplate(reason=verdict.reason, lasting=True) if isinstance(verdict, StartPlainly) else None
        case StartError() as error:
            return _told(error.message, said)
        case None:
            return _told("it ended", said)
