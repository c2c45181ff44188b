"""Faults that a service lives with for a while: a wrong clock, a full disk, a socket that it does not read from."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from signal import SIGCONT, SIGSTOP

from squall_bus import Bus
from squall_contracts import subjects
from squall_service.failpoints import CLOCK, DISK
from squall_verify.failpoints import FailPoints
from squall_verify.faults.processes import chosen_part, hit, send
from squall_verify.faults.registry import Given, Hit, Site, fault
from squall_verify.faults.steps import PARTS, POINTS_FOLDER
from squall_verify.platform import Part
from squall_verify.processes import Process
from squall_verify.waiting import NotInTime, eventually

JUMPS = ("agent", "gateway", "scheduler")
JUMP_S = (10.0, 45.0)
FLOODED_BYTES, MESSAGE_BYTES = 24 << 20, 512 << 10
"""More than the buffers of a loopback connection hold (10 MiB with the kernel's defaults)."""
DROPPED_S = 8.0
"""nats-server drops a connection to which it could not write for 5 s (write_deadline)."""
DROPPED = "Slow Consumer"
"""In nats-server's log."""


@contextmanager
def condition(site: Site, part: Part, what: str) -> Iterator[None]:
    """The part lives with that until the block ends."""
    points = FailPoints(site.folder / POINTS_FOLDER)
    points.arm(what, part)
    try:
        yield
    finally:
        with suppress(NotInTime):  # it stands still, and will read this first when it goes on
            points.arm("", part)


def whose_clock(dice: Random) -> dict[str, float | str]:
    """Whose clock jumps, how far, and for how long."""
    jump_s = round(dice.uniform(*JUMP_S) * dice.choice([-1, 1]), 1)
    how_long = {"for_s": round(dice.uniform(2.0, 10.0), 2)}
    return {"which": dice.random(), "service": dice.choice(JUMPS), "jump_s": jump_s, **how_long}


@fault(
    "clock-jump",
    about="the wall clock of an agent, a gateway or a scheduler jumps by 10 to 45 s, forward or back",
    heals="it jumps back",
    weight=0.9,
    parameters=whose_clock,
)
@contextmanager
def clock_jump(site: Site, given: Given) -> Iterator[Hit]:
    """Of the service alone: containers and nats-server keep the machine's time."""
    part, jump_s = chosen_part(site, PARTS[str(given["service"])], given), float(given["jump_s"])
    with condition(site, part, f"{CLOCK}=jump:{jump_s}"):
        found = hit(part)
        yield Hit(found.victim, found.node, found.pid, f"{jump_s:+g} s", skew_s=abs(jump_s))


def which_and_for_seconds(dice: Random) -> dict[str, float | str]:
    """Which agent, and for how long."""
    return {"which": dice.random(), "for_s": round(dice.uniform(1.0, 8.0), 2)}


@fault(
    "full-disk",
    about="every write of an agent to its disk fails with ENOSPC (code, arguments, large results)",
    heals="there is room again",
    weight=0.6,
    parameters=which_and_for_seconds,
)
@contextmanager
def full_disk(site: Site, given: Given) -> Iterator[Hit]:
    """By a fail point: a disk of its own would need root."""
    part = chosen_part(site, PARTS["agent"], given)
    with condition(site, part, f"{DISK}=full"):
        yield hit(part)


def which_reader(dice: Random) -> dict[str, float | str]:
    """Who does not read any more."""
    return {"which": dice.random(), "service": dice.choice(["agent", "gateway", "scheduler", "autoscaler"])}


@fault(
    "slow-consumer",
    about="a service does not read what nats-server sends it until it is dropped as a slow consumer",
    heals="it goes on, finds its connection gone, and connects anew",
    weight=0.3,
    parameters=which_reader,
)
@contextmanager
def slow_consumer(site: Site, given: Given) -> Iterator[Hit]:
    """It stands still while more is sent to it than its connection's buffers hold."""
    service = str(given["service"])
    part = chosen_part(site, PARTS[service], given)
    before, began = dropped(site), time.monotonic()
    send(part.pid, SIGSTOP, part.name)
    try:
        site.on_bus(flood_of_cancels if service == "agent" else flood_of_stats)
        told = "never dropped"
        with suppress(NotInTime):
            eventually(lambda: dropped(site) > before, within_s=DROPPED_S)
            told = f"dropped after {time.monotonic() - began:.1f} s"
        found = hit(part)
        yield Hit(found.victim, found.node, found.pid, told)
    finally:
        Process(part.pid, 0, part.name, "").signal(SIGCONT)


def dropped(site: Site) -> int:
    """How often a nats-server has dropped somebody for that."""
    return sum(log.read_text(errors="replace").count(DROPPED) for log in site.platform.data.glob("bus*.log"))


async def flood_of_cancels(bus: Bus) -> None:
    """To every agent; nobody understands them."""
    await _flood(bus, subjects.cancel(bus.topology.region, "po-none"))


async def flood_of_stats(bus: Bus) -> None:
    """To gateways, schedulers and autoscalers."""
    await _flood(bus, subjects.stats(bus.topology.region, "local-0"))


async def _flood(bus: Bus, subject: str) -> None:
    for _ in range(FLOODED_BYTES // MESSAGE_BYTES):
        bus.send(subject, bytes(MESSAGE_BYTES))
        await bus.flush(5.0)
