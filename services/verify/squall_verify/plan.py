"""The plan of a run: which operations callers begin when, what is deployed when, and which faults come when. Pure.

The same seed, duration and faults give the same plan. What really happens differs, because real processes keep their
own time; the report tells what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from squall_verify.faults.processes import BUSIEST
from squall_verify.faults.registry import Fault

CLIENTS = 2
RATE = 5.0
"""Operations that each client begins a second."""
GUEST_CLIENT = CLIENTS
"""The caller of the other workspace, beside those of the first."""
GUEST_RATE = 1.0
WARM_S = 2.0
"""Before the first fault."""
GAP_S = (0.8, 3.0)
"""Between the beginnings of two faults."""
PAUSED_PAST_LEASE_S = 13.0
ALWAYS = frozenset({"garbage-call", "late-call"})
"""Of these every run has one; two invariants are about nothing else."""
STEADY_CALLS = 8
STEADY_S = (1.0, 4.0)
MAX_PENDING = 250
"""The gateways' limit for each pool: more than a map has inputs, so that a flood reaches it."""
FLOOD_CALLS = 3000
"""At most; it ends when some were refused."""
FLOOD_REFUSALS = 20
FLOOD_S = 0.05
HOGS, HOG_S = 50, 0.25
"""For each agent, which has room for two of them at once: six seconds of work in all."""
STATE_STEPS: Mapping[str, int] = {"dict": 8, "queue": 6, "volume": 3, "web": 5}
"""Requests of one operation."""
MEETING = 4
GROUP_S = 4.0
"""Keys of dicts that are claimed once are those of operations that begin so close to each other."""
EVERYBODYS = "all"
"""In place of a group: of operations that claim the same key first of all."""
LONE_AFTER_S = (0.5, 1.5, 3.0)
"""The first result of the flood."""
FLOOD_OP = "share-flood"
FORMS: Mapping[str, float] = {
    "remote": 5,
    "spawn": 5,
    "forget": 3,
    "map": 2,
    "starmap": 1,
    "unordered": 1,
    "exceptions": 1,
    "generator": 2,
    "method": 2,
    "nested": 1.5,
    "retry": 2,
    "timeout": 0.7,
    "cancel": 4,
    "bulky": 1.5,
    "many": 2,
    "narrow": 1,
    "twice": 1.5,
    "keyed": 1,
    "pry": 0.5,
    "dict": 2,
    "queue": 2,
    "volume": 1,
    "web": 1.5,
}
"""How an operation calls, and how often that is drawn."""
TELLING = frozenset(
    {"remote", "spawn", "forget", "map", "exceptions", "retry", "timeout", "cancel", "many", "generator"}
)
TELLS_OF = 4
"""One in so many operations of these forms has its ends told to a webhook."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one caller does, once."""

    id: str
    client: int
    at_s: float
    form: str
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault with what was drawn for it."""

    at_s: float
    name: str
    given: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def for_s(self) -> float:
        """How long it lasts before it is healed."""
        return float(self.given.get("for_s", 0.0))


@dataclass(frozen=True, slots=True)
class Act:
    """What an operator does, once."""

    at_s: float
    name: str
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a seed decides."""

    seed: int
    seconds: float
    operations: tuple[Operation, ...]
    deploys: tuple[float, ...]
    """When the program is deployed again, as another version."""
    faults: tuple[PlannedFault, ...]
    acts: tuple[Act, ...] = ()
    mixed: bool = False
    """A mixed load (mixed.py); otherwise faults without an operator."""

    def as_json(self) -> dict[str, Any]:
        """For the evidence folder."""
        return asdict(self)


def make_plan(seed: int, seconds: float, faults: Sequence[Fault]) -> Plan:
    """The plan of a seed. Each part has dice of its own: another set of faults leaves the operations as they are."""
    return Plan(
        seed=seed,
        seconds=seconds,
        operations=tuple(
            sorted(
                [
                    *_operations(Random(f"{seed} operations"), seconds),
                    *_guests(Random(f"{seed} guest"), seconds),
                ],
                key=lambda each: each.at_s,
            )
        ),
        deploys=tuple(_deploys(Random(f"{seed} deploys"), seconds)),
        faults=tuple(_faults(Random(f"{seed} faults"), seconds, {each.name: each for each in faults})),
    )


# ---------------------------------------------------------------- operations


def _operations(dice: Random, seconds: float) -> list[Operation]:
    found: list[Operation] = []
    for client in range(CLIENTS):
        at_s = 0.0
        while (at_s := at_s + dice.expovariate(RATE)) < seconds:
            form = dice.choices(list(FORMS), list(FORMS.values()))[0]
            found.append(_drawn(f"op-{len(found)}", client, at_s, form, dice))
    # On both agents when one of them is stopped past its leases: see `_forced`.
    for _ in range(STEADY_CALLS):
        at_s = round(_forced_at(seconds)[0] - 1.0 + dice.random(), 3)
        steady = {"s": round(dice.uniform(*STEADY_S), 2)}
        found.append(Operation(f"op-{len(found)}", len(found) % CLIENTS, max(0.0, at_s), "steady", steady))
    # At the same time, so that commits meet.
    for number in range(MEETING):
        found.append(_drawn(f"op-{len(found)}", number % CLIENTS, 0.6 * seconds, "volume", dice))
    # Who comes second is told that the key has an owner.
    for client in range(CLIENTS):
        claiming = {**given_for("dict", dice), "group": EVERYBODYS, "claims": True}
        found.append(Operation(f"op-{len(found)}", client, round(0.1 * seconds, 3), "dict", claiming))
    at_s, flood = round(0.3 * seconds, 3), {"n": FLOOD_CALLS, "refusals": FLOOD_REFUSALS, "s": FLOOD_S}
    found.append(Operation(f"op-{len(found)}", 0, at_s, "flood", flood))
    return found


def _guests(dice: Random, seconds: float) -> list[Operation]:
    found: list[Operation] = []
    at_s = 0.0
    while (at_s := at_s + dice.expovariate(GUEST_RATE)) < seconds:
        form = dice.choices(list(FORMS), list(FORMS.values()))[0]
        found.append(_drawn(f"guest-{len(found)}", GUEST_CLIENT, at_s, form, dice))
    return found


def _drawn(name: str, client: int, at_s: float, form: str, dice: Random) -> Operation:
    given = given_for(form, dice)
    if form in STATE_STEPS:
        given["group"] = int(at_s // GROUP_S)
    if form in TELLING and int(name.rpartition("-")[2]) % TELLS_OF == 0:
        given["tells"] = True
    return Operation(name, client, round(at_s, 3), form, given)


def sharing(agents: int) -> tuple[Operation, ...]:
    """What is called once everything is healed: one workspace floods the machines, the other makes a few calls;
    and both look at each other."""
    flood = Operation(FLOOD_OP, 0, 0.0, "hog", {"n": HOGS * agents, "s": HOG_S})
    lone = [
        Operation(f"share-{number}", GUEST_CLIENT, 0.0, "lone", {"after_s": after_s})
        for number, after_s in enumerate(LONE_AFTER_S)
    ]
    curious = (Operation(f"share-pry-{client}", client, 0.0, "pry") for client in (1, GUEST_CLIENT))
    return (flood, *lone, *curious)


def given_for(form: str, dice: Random) -> dict[str, Any]:
    """What is drawn for an operation of that form."""
    short = round(dice.choice([0, 0, 0.005, 0.05, 0.3]), 3)
    match form:
        case "map" | "starmap" | "unordered":
            return {"n": dice.choice([1, 5, 30, 120]), "s": dice.choice([0, 0, 0.02])}
        case "exceptions":
            n = dice.choice([3, 20])
            return {"n": n, "bad": sorted(dice.sample(range(n), 2))}
        case "generator":
            return {"n": dice.choice([0, 1, 10, 40]), "s": dice.choice([0, 0.03])}
        case "nested":
            return {"n": dice.choice([1, 4])}
        case "retry":
            return {"failures": dice.choice([0, 1, 2, 3]), "s": short}
        case "timeout":
            return {"s": 6.0, "stubborn": dice.random() < 0.5}
        case "cancel":
            return {
                "s": round(dice.uniform(0.1, 3.0), 2),
                "after_s": round(dice.choice([0, 0.02, 0.3, dice.random() * 2]), 3),
            }
        case "bulky":
            return {"bytes": dice.choice([66_000, 200_000, 1_000_000])}
        case "dict" | "queue" | "volume" | "web":
            return {"n": STATE_STEPS[form], "dice": dice.randrange(2**32)}
        case "method":
            return {"x": dice.randrange(1000), "start": dice.choice([0, 100]), "s": short}
        case _:
            return {"s": short}


def _deploys(dice: Random, seconds: float) -> list[float]:
    return [round(seconds * (0.2 + 0.3 * part) + dice.random() * 3, 2) for part in range(2) if seconds >= 20]


# ---------------------------------------------------------------- faults


def _forced_at(seconds: float) -> tuple[float, float, float]:
    """When the agent is stopped past its leases, when one is killed, when nats-server is."""
    return WARM_S + 0.08 * seconds, WARM_S + 0.5 * seconds, WARM_S + 0.68 * seconds


def _faults(dice: Random, seconds: float, known: Mapping[str, Fault]) -> list[PlannedFault]:
    """Random ones, and those without which a run proves little."""
    pause, agent, bus = _forced_at(seconds)
    forced = {
        "pause-agent": (pause, {"which": BUSIEST, "for_s": PAUSED_PAST_LEASE_S}),
        "kill-agent": (agent, {"which": dice.random()}),
        "kill-bus": (bus, {"which": 0.0}),
    }
    found = [PlannedFault(round(at, 2), name, given) for name, (at, given) in forced.items() if name in known]
    found += [
        PlannedFault(round(0.4 * seconds, 2), name, known[name].parameters(dice))
        for name in sorted(ALWAYS & set(known))
    ]
    weights = {name: each.weight or 1.0 for name, each in known.items() if each.weight > 0 or len(known) == 1}
    at_s = WARM_S
    while weights and (at_s := at_s + dice.uniform(*GAP_S)) < seconds:
        name = dice.choices(list(weights), list(weights.values()))[0]
        found.append(PlannedFault(round(at_s, 2), name, known[name].parameters(dice)))
    return sorted(found, key=lambda each: each.at_s)
