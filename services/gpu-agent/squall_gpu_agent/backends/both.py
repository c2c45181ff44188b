"""Two backends on one machine: plain processes, and sandboxes for functions that cannot be had without.

Decides which of the two makes a container, by what its function demands and what its image is. The sandboxes' part is
loaded and tried when the first container needs it (0.3 to 0.9 s): programs which do not need it never pay for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from squall.spec import ImageSpec
from squall_gpu_agent.backend import (
    Backend,
    Capabilities,
    Container,
    ContainerRequest,
    Isolation,
    NoTemplate,
    OnLog,
    OnText,
    Root,
    StartFailed,
    Template,
)
from squall_images.eviction import Freed, Unwanted
from squall_images.machine_packages import needs_sandbox

NOTE = "containers are plain processes; functions that demand isolation, or whose image needs more, get sandboxes"


class BothBackend:
    """See `squall_gpu_agent.backend.Backend`."""

    def __init__(self, processes: Backend, open_sandboxes: Callable[[], Backend]) -> None:
        self._processes = processes
        self._open_sandboxes = open_sandboxes
        self._sandboxes: Backend | None = None
        self._opening = asyncio.Lock()

    async def probe(self) -> Capabilities:
        """See `Backend.probe`. Sandboxes are tried when they are needed."""
        plain = await self._processes.probe()
        notes = (NOTE, *plain.notes[1:])
        return replace(plain, backend="sandbox", isolation=Isolation.SANDBOX, plain=True, notes=notes)

    async def ensure_root(self, image: ImageSpec, on_log: OnText) -> Root:
        """See `Backend.ensure_root`."""
        chosen = await self._sandboxed() if needs_sandbox(image) else self._processes
        return await chosen.ensure_root(image, on_log)

    def images(self) -> tuple[str, ...]:
        """See `Backend.images`."""
        return self._sandboxes.images() if self._sandboxes is not None else ()

    async def sweep_images(self, now: float) -> None:
        """See `Backend.sweep_images`."""
        if self._sandboxes is not None:
            await self._sandboxes.sweep_images(now)

    async def prune_images(self, unwanted: Unwanted, now: float, *, dry_run: bool) -> Freed:
        """See `Backend.prune_images`. Before the first sandbox no layer was used here: its builder has them all."""
        chosen = self._sandboxes or self._processes
        return await chosen.prune_images(unwanted, now, dry_run=dry_run)

    async def template(self, request: ContainerRequest, on_log: OnLog) -> Template | NoTemplate:
        """See `Backend.template`."""
        return await (await self._for(request)).template(request, on_log)

    async def start(self, request: ContainerRequest, on_log: OnLog) -> Container:
        """See `Backend.start`."""
        return await (await self._for(request)).start(request, on_log)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._processes.close()
        async with self._opening:
            if self._sandboxes is not None:
                await self._sandboxes.close()

    async def _for(self, request: ContainerRequest) -> Backend:
        isolated = (await self.probe()).isolates(request.spec)
        return await self._sandboxed() if isolated else self._processes

    async def _sandboxed(self) -> Backend:
        """The sandboxes. Raises `StartFailed` where none can be made after all."""
        async with self._opening:
            if self._sandboxes is None:
                sandboxes = self._open_sandboxes()
                try:
                    await sandboxes.probe()
                except StartFailed as failed:
                    await sandboxes.close()
                    raise StartFailed(failed.kind, f"sandboxes cannot be made here: {failed.message}") from failed
                except BaseException:
                    # A start that was given up: the next one opens others in the same folders.
                    await asyncio.shield(sandboxes.close())
                    raise
                self._sandboxes = sandboxes
            return self._sandboxes
