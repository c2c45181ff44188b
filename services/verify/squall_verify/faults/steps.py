"""Faults at one exact step of a call: a service kills itself there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from squall_service.failpoints import POINTS
from squall_verify.failpoints import FailPoints, gone
from squall_verify.faults.processes import chosen_part, hit
from squall_verify.faults.registry import Given, Hit, NotPossible, Site, fault
from squall_verify.waiting import NotInTime, eventually

POINTS_FOLDER = "failpoints"
"""In the folder of the run."""
REACHED_S = 5.0
PARTS = {"gateway": "gateway", "agent": "gpu-agent", "scheduler": "scheduler", "autoscaler": "autoscaler"}
"""First word of a step, and how the parts are named that come to it."""


def which_and_where(dice: Random) -> dict[str, float | str]:
    """Who dies, and at which step."""
    return {"which": dice.random(), "step": dice.choice(list(POINTS))}


@fault(
    "die-at-step",
    about="a service kills itself at one step of a call (a fail point)",
    heals="its supervisor starts it again; disarmed if nothing comes to that step",
    weight=0,
    parameters=which_and_where,
)
@contextmanager
def die_at_step(site: Site, given: Given) -> Iterator[Hit]:
    """By name only: `squall verify --faults die-at-step`."""
    step = str(given["step"])
    part = chosen_part(site, PARTS[step.partition(".")[0]], given)
    points = FailPoints(site.folder / POINTS_FOLDER)
    points.arm(f"{step}=kill", part)
    try:
        eventually(lambda: gone(part), within_s=REACHED_S)
    except NotInTime:
        points.arm("", part)
        if not gone(part):
            raise NotPossible(f"no call came to {step} in {part.name}") from None
    found = hit(part)
    yield Hit(found.victim, found.node, found.pid, step)
