"""The plan of a mixed load: every form of call, while an operator deploys, rolls back, changes scaling and takes a
machine out of service, and one machine is lost now and then. Pure.

No other faults: what is slow or is executed again in such a run is what users of a fleet that is looked after see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from squall_verify.plan import Act, Plan, PlannedFault, make_plan

CYCLE_S = 60.0
LEAST_CYCLES = 1
LOST = "kill-agent"
SCALED: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = (
    ("plain", {"min_containers": 2}, {"min_containers": 0}),
    ("many", {"max_containers": 1, "scaledown_window": 2}, {"max_containers": 2, "scaledown_window": 5}),
    ("held", {"buffer_containers": 1}, {"buffer_containers": 0}),
    ("narrow", {"min_containers": 1}, {"min_containers": 0}),
)
"""Function, another scaling within what the program declares, and the declared one again."""


def make_mixed_plan(seed: int, seconds: float) -> Plan:
    """The operations of that seed, and what the operator does meanwhile."""
    dice = Random(f"{seed} operator")
    cycles = max(LEAST_CYCLES, round(seconds / CYCLE_S))
    length = seconds / cycles
    acts = [act for cycle in range(cycles) for act in _cycle(cycle, cycle * length, length)]
    lost = [
        PlannedFault(round((cycle + 0.85) * length, 2), LOST, {"which": dice.random()}) for cycle in range(0, cycles, 2)
    ]
    return replace(make_plan(seed, seconds, ()), deploys=(), acts=tuple(acts), faults=tuple(lost), mixed=True)


def _cycle(number: int, begins: float, length: float) -> Iterator[Act]:
    """Scaling goes back before versions change, so that no version is left with another one than declared."""
    function, other, declared = SCALED[number % len(SCALED)]

    def at(part: float, name: str, **given: Any) -> Act:
        return Act(round(begins + part * length, 2), name, given)

    yield at(0.05, "scale", function=function, settings=other)
    yield at(0.2, "scale", function=function, settings=declared)
    yield at(0.25, "deploy", version=number + 2)
    yield at(0.45, "rollback")
    yield at(0.55, "drain", node=number, hold_s=0.1 * length)
