"""Faults of processes: killed, stopped for a while, restarted one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

from squall_verify.faults.registry import Given, Hit, NotPossible, Site, fault, node_name
from squall_verify.platform import Part
from squall_verify.processes import Process, descendants, process

SERVICES = {
    "gateway": "gateway",
    "scheduler": "scheduler",
    "autoscaler": "autoscaler",
    "builder": "builder",
    "agent": "gpu-agent",
    "bus": "bus",
}
"""Name of a fault's victim, and how its parts are named."""
WEIGHTS = {"builder": 0.4, "autoscaler": 0.7, "scheduler": 0.7, "bus": 0.8}
ROLLED_S = 75.0
READY_AGAIN_S = 60.0
LOST_S = 75.0
"""The others notice it after 10 to 15 s, queues are made again 20 s later."""
BUSIEST = 2.0
"""As `which`: the agent with the most containers."""


def which(dice: Random) -> dict[str, float | str]:
    """Who of several is hit."""
    return {"which": dice.random()}


def which_and_how_long(dice: Random) -> dict[str, float | str]:
    """Short pauses mostly; one of five is longer than a lease."""
    long = dice.random() < 0.2
    return {**which(dice), "for_s": round(dice.uniform(9.0, 13.0) if long else dice.uniform(0.2, 3.0), 2)}


def send(pid: int, signal: Signals, name: str) -> None:
    """Signals a process. Raises `NotPossible` when it is gone."""
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        raise NotPossible(f"{name} is gone") from None


def chosen_part(site: Site, prefix: str, given: Given) -> Part:
    """The part that is meant."""
    parts = [part for part in site.platform.parts_named(prefix) if process(part.pid)]
    if not parts:
        raise NotPossible(f"no {prefix} is running")
    if float(given.get("which", 0.0)) >= BUSIEST:
        return max(parts, key=lambda part: sum(child.is_runner for child in descendants(part.pid)))
    return parts[int(float(given.get("which", 0.0)) * len(parts))]


def chosen_runner(site: Site, given: Given, *, templates: bool) -> Process:
    """A container, or a template: a runner with runners below it."""
    runners = site.platform.runners()
    parents = {runner.parent for runner in runners}
    found = [runner for runner in runners if (runner.pid in parents) == templates]
    if not found:
        raise NotPossible("there is no template" if templates else "there is no container")
    return found[int(float(given["which"]) * len(found))]


def hit(part: Part) -> Hit:
    """A part as victim."""
    return Hit(part.name, node_name(part) if part.name.startswith("gpu-agent") else "", part.pid)


def _kill_part(prefix: str) -> Callable[[Site, Given], Iterator[Hit]]:
    def inject(site: Site, given: Given) -> Iterator[Hit]:
        part = chosen_part(site, prefix, given)
        send(part.pid, SIGKILL, part.name)
        yield hit(part)
        # Until then what it did is missing: on a busy machine for longer than most limits.
        site.platform.ready_again(part, within_s=READY_AGAIN_S)

    return inject


def _pause_part(prefix: str) -> Callable[[Site, Given], Iterator[Hit]]:
    def inject(site: Site, given: Given) -> Iterator[Hit]:
        part = chosen_part(site, prefix, given)
        send(part.pid, SIGSTOP, part.name)
        try:
            yield hit(part)
        finally:
            Process(part.pid, 0, part.name, "").signal(SIGCONT)

    return inject


for _name, _prefix in SERVICES.items():
    fault(
        f"kill-{_name}",
        about=f"SIGKILL to {'nats-server' if _name == 'bus' else f'a process of the {_name}'}",
        heals="the supervisor starts it again",
        weight=WEIGHTS.get(_name, 1.0),
        parameters=which,
    )(contextmanager(_kill_part(_prefix)))
    fault(
        f"pause-{_name}",
        about=f"SIGSTOP to {'nats-server' if _name == 'bus' else f'a process of the {_name}'}, also past its leases",
        heals="SIGCONT",
        weight=WEIGHTS.get(_name, 1.0) / 2,
        parameters=which_and_how_long,
    )(contextmanager(_pause_part(_prefix)))


@fault(
    "lose-bus-server",
    about="SIGSTOP to one of several nats-servers, for so long that the others go on without it",
    heals="SIGCONT",
    weight=0,
    parameters=lambda dice: {**which(dice), "for_s": LOST_S},
)
@contextmanager
def lose_bus_server(site: Site, given: Given) -> Iterator[Hit]:
    """What only that server had is made again elsewhere; it comes back with what it had."""
    servers = [found for part in site.platform.parts_named(SERVICES["bus"]) if (found := process(part.pid))]
    if len(servers) < 3 or any(server.state == "T" for server in servers):
        raise NotPossible("most servers would be away")
    yield from _pause_part(SERVICES["bus"])(site, given)


@fault(
    "kill-runner",
    about="SIGKILL to a container",
    heals="its agent reports it; another takes over",
    weight=2,
    parameters=which,
)
@contextmanager
def kill_runner(site: Site, given: Given) -> Iterator[Hit]:
    """Somebody's input may be in it."""
    victim = chosen_runner(site, given, templates=False)
    node = site.node_of(victim)
    send(victim.pid, SIGKILL, "the container")
    yield Hit("runner", node, victim.pid)


@fault("pause-runner", about="SIGSTOP to a container", heals="SIGCONT", weight=0.5, parameters=which_and_how_long)
@contextmanager
def pause_runner(site: Site, given: Given) -> Iterator[Hit]:
    """Its time limit is its agent's business, and goes on."""
    victim = chosen_runner(site, given, templates=False)
    send(victim.pid, SIGSTOP, "the container")
    try:
        yield Hit("runner", site.node_of(victim), victim.pid)
    finally:
        victim.signal(SIGCONT)


@fault(
    "kill-template",
    about="SIGKILL to the parent that containers are forked from",
    heals="the next start makes another",
    weight=0.5,
    parameters=which,
)
@contextmanager
def kill_template(site: Site, given: Given) -> Iterator[Hit]:
    """Its containers live on or die with it; their inputs must not care."""
    victim = chosen_runner(site, given, templates=True)
    node = site.node_of(victim)
    send(victim.pid, SIGKILL, "the template")
    yield Hit("template", node, victim.pid)


@fault(
    "rolling-restart",
    about="SIGTERM to every service, one after the other, each waited for",
    heals="the supervisor starts them again",
    weight=0.2,
)
@contextmanager
def rolling_restart(site: Site, given: Given) -> Iterator[Hit]:
    """As an upgrade does it. Other faults go on meanwhile."""
    done = []
    for part in site.platform.parts():
        if part.name.startswith("bus") or not process(part.pid):
            continue
        send(part.pid, SIGTERM, part.name)
        site.platform.restarted(part, within_s=ROLLED_S)
        done.append(part.name)
    yield Hit("every service", detail=" ".join(done))
