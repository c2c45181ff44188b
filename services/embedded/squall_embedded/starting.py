"""Puts the platform together and runs its event loop: what `__main__` imports once nats-server has been started."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn

import uvloop

from squall.errors import SquallError
from squall_contracts import topology
from squall_contracts.subjects import kv_stream
from squall_embedded.announcing import Announcer
from squall_embedded.bus_program import BusProgram
from squall_embedded.bus_server import BusServer, BusServers
from squall_embedded.platform import Platform
from squall_embedded.settings import ALWAYS, REGION, SHARDS, EmbeddedSettings
from squall_embedded.site import Form
from squall_embedded.staging import Staging
from squall_embedded.state import remove_folder
from squall_service.memory import keep_freed_memory
from squall_service.open_files import allow_many_open_files
from squall_service.telemetry import configure_logging, current_service, log

IMPORT_SWITCH_INTERVAL_S = 0.001
"""While services are imported in a thread, the event loop must not wait 5 ms for each of its turns."""


def run_platform(
    settings: EmbeddedSettings,
    servers: Sequence[tuple[BusProgram, subprocess.Popen[bytes]]],
    ports: tuple[int, ...],
    parent: int,
) -> int:
    """Runs the platform around the started server processes; its exit status. Raises what kept it from starting."""
    keep_freed_memory()
    allow_many_open_files()
    configure_logging()
    current_service.set("embedded")
    if settings.sync_interval != ALWAYS:
        log.warning("acknowledged_calls_can_be_lost", sync_interval=settings.sync_interval)
    sys.setswitchinterval(IMPORT_SWITCH_INTERVAL_S)

    async def live() -> None:
        await Platform(
            settings=settings,
            servers=BusServers([_server(settings, program, process) for program, process in servers]),
            ports=ports,
            load_form=functools.partial(_load_form, settings),
            announce=Announcer(settings.state_file).announce,
            vanish=functools.partial(vanish, settings),
            parent=parent,
        ).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(live())
        except BaseExceptionGroup as group:
            raise _cause(group) from None
    return 0


def _server(settings: EmbeddedSettings, program: BusProgram, process: subprocess.Popen[bytes]) -> BusServer:
    layout = topology.build(REGION, SHARDS, settings.bus_servers)
    alone = [spec.name for spec in layout.streams if spec.allow_atomic and spec.replicas == 1]
    alone += [kv_stream(spec.name) for spec in layout.buckets if spec.allow_atomic and spec.replicas == 1]
    staging = Staging(program.folder, alone)
    staging.open()
    return BusServer(program, process, staging)


def vanish(settings: EmbeddedSettings) -> NoReturn:
    """Ends a temporary platform without leaving anything; processes of ours die with us."""
    remove_folder(settings.data)
    os._exit(0)


def _load_form(settings: EmbeddedSettings) -> Form:
    name = "squall_embedded.processes" if settings.processes else "squall_embedded.tasks"
    form: Form = importlib.import_module(name).run_services
    sys.setswitchinterval(0.005)
    return form


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; a refusal (port in use, server too old) is what people want to read."""
    refusals, others = group.split(SquallError)
    error: BaseException = refusals or others or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, SquallError):
        log.error("platform_failed", error=error)
    return error
