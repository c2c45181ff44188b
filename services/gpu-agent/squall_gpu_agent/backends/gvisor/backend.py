"""The gVisor backend: containers whose system calls are answered by a kernel of their own, in user space.

Owns nothing that the sandbox backend does not: slots, layers, groups and networks are the same. What differs is what
runs in a slot: runsc, as an unprivileged user, over the same overlay. There are no templates.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from squall.spec import FunctionSpec
from squall_gpu_agent.backend import ContainerRequest, Isolation, NoTemplate, OnLog, StartFailed, StartFailureKind
from squall_gpu_agent.backends import launch
from squall_gpu_agent.backends.gvisor import words
from squall_gpu_agent.backends.gvisor.container import GvisorContainer
from squall_gpu_agent.backends.gvisor.link import GvisorLink
from squall_gpu_agent.backends.phases import Timeline
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.runner_container import code_and_signal
from squall_gpu_agent.backends.sandbox.backend import PROBE_IDS, PROBE_S, Roots, SandboxBackend, SandboxSettings
from squall_gpu_agent.backends.sandbox.container import SandboxContainer
from squall_gpu_agent.backends.sandbox.slots import LauncherLink, Slot
from squall_gpu_agent.backends.sandbox.template import SandboxTemplate
from squall_gpu_agent.backends.sandbox.wanted import SDK, SandboxWanted
from squall_gpu_agent.backends.sandbox.words import Bind, SlotPlan
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_gpu_agent.runner_link import RunnerLink
from squall_isolation.cgroups import Group, Groups, Limits

NO_BUCKETS = "the gvisor backend cannot mount buckets yet; use a node with the sandbox backend"
ASK_S = 20.0
# Only the first three descriptors reach a program in gVisor: the socket comes as the first.
_SOCKET_FIRST = "import os; os.dup2(0, 3); n = os.open('/dev/null', 0); os.dup2(n, 0); os.close(n); "


class GvisorBackend(SandboxBackend):
    """See `squall_gpu_agent.backend.Backend`."""

    name = "gvisor"
    isolation = Isolation.GVISOR
    overhead_mib = 96
    """Of runsc's three processes: 70 MiB resident with one small program in it."""
    overhead_processes = 64

    def __init__(self, settings: SandboxSettings, roots: Roots, *, runsc: str = "runsc", platform: str = "") -> None:
        """`platform`: how runsc catches system calls; "" = systrap if it has that, else ptrace."""
        super().__init__(settings, roots)
        self._named = runsc
        self._program = ""
        self._platform = platform

    # --- parts ---

    def _new_launcher(self) -> LauncherLink:
        return GvisorLink(self._data / "stage")

    async def _try_a_slot(self) -> None:
        """runsc itself as the program: it needs nothing but a kernel."""
        _, groups, launcher = await self._opened()
        assert isinstance(launcher, GvisorLink)
        name = f"probe-{next(self._numbers)}"
        group = groups.make(name, Limits(memory_mib=256, processes=256, cpu=0.1))
        plan = self._plan(name, PROBE_IDS, [str(self._data / "nothing")], group)
        slot = launcher.make(plan._replace(binds=[*plan.binds, Bind(self._program, "/probe", mapped=False)]), group)
        try:
            async with asyncio.timeout(PROBE_S):
                await slot.until_made()
                with _nowhere() as ends:
                    await launcher.start(slot, self._order(slot, ["/probe", "--version"], {}, "/", False), ends)
                code, _ = code_and_signal(await asyncio.shield(slot.ended))
        finally:
            launcher.kill(slot)
            launcher.release(slot)
        if code != 0:
            raise OSError(0, f"runsc cannot run a program on this machine (it ended with status {code})")

    def _open(self) -> tuple[SdkFiles, Groups]:
        self._find_runsc()
        return super()._open()

    def _find_runsc(self) -> None:
        found = shutil.which(self._named)
        if found is None:
            raise OSError(0, f"the program {self._named!r} is not there (install gVisor: Debian's package runsc)")
        self._program = os.path.realpath(found)
        told = [_told(self._program, word) for word in ("--version", "flags")]
        if not self._platform:
            self._platform = "systrap" if "systrap" in told[1] else "ptrace"
        version = told[0].splitlines()[0].removeprefix("runsc version ") if told[0] else "of unknown version"
        self._notes = (f"runsc {version}, platform {self._platform}",)

    def _plan(self, name: str, ids: int, layers: list[str], group: Group) -> SlotPlan:
        plan = super()._plan(name, ids, layers, group)
        return plan._replace(binds=[Bind(self._program, words.RUNSC, mapped=False)])

    def _order(self, slot: Slot, argv: Sequence[str], env: dict[str, str], cwd: str, network: bool) -> dict[str, Any]:
        main = words.process(argv, env, cwd, slot.plan.open_files)
        return {"about": words.container(slot.plan, main), "runsc": words.runsc(self._platform, network)}

    # --- StartingBackend ---

    async def _wanted(self, request: ContainerRequest, on_log: OnLog) -> SandboxWanted:
        if request.gpus:
            message = (
                "the gvisor backend gives no devices to containers (that is gVisor's nvproxy, which is not built in); "
                "use a node with the sandbox, docker or process backend"
            )
            raise StartFailed(StartFailureKind.INFRA, message)
        if request.buckets:
            raise StartFailed(StartFailureKind.INFRA, NO_BUCKETS)
        return await super()._wanted(request, on_log)

    def _no_buckets(self) -> str:
        return NO_BUCKETS

    async def _template(self, wanted: SandboxWanted, on_log: OnLog, timeline: Timeline) -> SandboxTemplate | NoTemplate:
        return NoTemplate(reason="containers of gVisor cannot be forked", lasting=True)

    def _container(self, name: str, link: RunnerLink, slot: Slot | None, launcher: LauncherLink) -> SandboxContainer:
        container = GvisorContainer(name, link, slot, launcher)
        container.platform, container.most_processes = self._platform, self._settings.processes
        return container

    async def _start_fresh(self, wanted: SandboxWanted, container: SandboxContainer, ends: Ends) -> dict[str, Any]:
        container.how = "fresh"
        launcher = (await self._opened()).launcher
        assert isinstance(launcher, GvisorLink)
        slot = self._slot(wanted, None, [], disk=await self._disk(wanted))
        container.move(slot)
        await slot.until_made()
        await slot.until_ready()
        variables = {**launch.shared_variables(wanted), **launch.own_variables(wanted)}
        argv = launch.command(wanted.root.python, SDK, _SOCKET_FIRST)
        order = self._order(slot, argv, variables, "/", self._has_network(wanted.request.spec))
        container.pid = await launcher.start(slot, order, ends.theirs)
        return launch.setup(wanted, {}, whole_env=False, template=False, forked=False)

    def _has_network(self, spec: FunctionSpec) -> bool:
        return self._networks is not None and not spec.block_network


def _told(program: str, word: str) -> str:
    done = subprocess.run([program, word], capture_output=True, text=True, check=False, timeout=ASK_S)
    return done.stdout + done.stderr


@contextmanager
def _nowhere() -> Iterator[list[int]]:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        yield [null] * 3
    finally:
        os.close(null)
