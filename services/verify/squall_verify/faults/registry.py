"""Faults: the registry, what a fault may touch, and what it hands back. To add one, decorate a context manager.

    @fault("pause-disk", about="...", heals="...", weight=0.5, parameters=lambda dice: {"for_s": dice.uniform(1, 5)})
    @contextmanager
    def pause_disk(site: Site, given: Given) -> Iterator[Hit]:
        ...                                   # hurt; raise NotPossible(reason) when there is nothing to hurt
        yield Hit("disk of nats-server")      # what was really hurt
        ...                                   # heal

Parameters are drawn when the run is planned, so that one seed is one plan; `for_s` is how long the fault lasts before
it is healed (0 or absent: healed at once). Each fault runs in a thread of its own: it may block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from squall_bus import Bus, BusError, connect
from squall_contracts import topology
from squall_verify.platform import Part, Platform
from squall_verify.processes import Process, ancestors

T = TypeVar("T")
Given = Mapping[str, float | str]


class NotPossible(Exception):
    """There is nothing to hurt in that way now; the reason."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What was hurt."""

    victim: str
    node: str = ""
    """Of an agent, or of the agent above a container."""
    pid: int = 0
    detail: str = ""
    skew_s: float = 0.0
    """How wrong its clock was."""


@dataclass(frozen=True, slots=True)
class Site:
    """What faults may touch: a platform and its bus."""

    platform: Platform
    folder: Path
    """Scratch of the run."""

    def on_bus(self, work: Callable[[Bus], Awaitable[T]]) -> T:
        """Runs a coroutine with a connection of its own that may do everything. Raises `NotPossible` without a bus."""

        async def run() -> T:
            async with connect(self.platform.bus_settings(), topology.build()) as bus:
                return await work(bus)

        try:
            return asyncio.run(run())
        except (BusError, OSError, ValueError) as error:  # a file of its ports that is just being written
            raise NotPossible(f"the bus does not answer: {error}") from error

    def node_of(self, process: Process) -> str:
        """The node of the agent under which a container runs; empty when it has lost its agent."""
        agents = {part.pid: part for part in self.platform.parts_named("gpu-agent")}
        above = next((agents[parent.pid] for parent in ancestors(process) if parent.pid in agents), None)
        return "" if above is None else node_name(above)


def node_name(agent: Part) -> str:
    """The node id of an agent, as the embedded platform names them."""
    return f"local-{agent.name.rpartition('-')[2]}"


Inject = Callable[[Site, Given], AbstractContextManager[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault."""

    name: str
    about: str
    """What it does."""
    heals: str
    """How it ends."""
    inject: Inject
    weight: float = 1.0
    """How often it is drawn, beside the others'; 0 = only when it is asked for by name."""
    parameters: Callable[[Random], dict[str, float | str]] = lambda _: {}
    missing: Callable[[], str] = lambda: ""
    """Why this machine cannot inject it; empty = it can."""


REGISTRY: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    about: str,
    heals: str,
    weight: float = 1.0,
    parameters: Callable[[Random], dict[str, float | str]] = lambda _: {},
    missing: Callable[[], str] = lambda: "",
) -> Callable[[Inject], Inject]:
    """Registers a context manager as a fault."""

    def register(inject: Inject) -> Inject:
        if name in REGISTRY:
            raise ValueError(f"two faults are named {name!r}")
        REGISTRY[name] = Fault(
            name=name,
            about=about,
            heals=heals,
            inject=inject,
            weight=weight,
            parameters=parameters,
            missing=missing,
        )
        return inject

    return register
