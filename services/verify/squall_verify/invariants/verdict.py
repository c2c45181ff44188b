"""Verdicts: what a checker says about one run. A checker that saw nothing to check says so, and never "ok"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from squall_verify.evidence import Evidence, Key

SHOWN = 10
"""Violations that are printed; the evidence folder has all."""


class State(StrEnum):
    """How an invariant fared."""

    OK = "ok"
    VIOLATED = "violated"
    NOT_EXERCISED = "not exercised"


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that must not be."""

    about: str
    """Id of the call, operation or pool."""
    what: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a checker found."""

    checked: int
    """How many things could have violated it; 0 = the run says nothing about it."""
    violations: tuple[Violation, ...] = ()
    note: str = ""
    """What was not looked at, or why nothing was."""


Check = Callable[[Evidence], Findings]


@dataclass(frozen=True, slots=True)
class Invariant:
    """One promise and the function that checks it."""

    name: str
    """I1, as in docs/reliability.md."""
    promise: str
    check: Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is said about one invariant after a run."""

    name: str
    promise: str
    state: State
    checked: int
    violations: tuple[Violation, ...] = ()
    note: str = ""


@dataclass
class Looking:
    """Counts what is looked at, and collects what is wrong with it."""

    checked: int = 0
    violations: list[Violation] = field(default_factory=list)

    def at(self, about: Key | str, good: bool, what: str) -> None:
        """One more thing was looked at; unless it is good, `what` is wrong with it."""
        self.checked += 1
        if not good:
            self.violations.append(Violation(name_of(about), what))

    def findings(self, note: str = "") -> Findings:
        """In the end."""
        return Findings(self.checked, tuple(self.violations), note)


def name_of(about: Key | str) -> str:
    """An input as people write it."""
    return about if isinstance(about, str) else f"{about[0]}:{about[1]}"


def judge(invariant: Invariant, evidence: Evidence) -> Verdict:
    """The verdict on one invariant."""
    found = invariant.check(evidence)
    state = State.VIOLATED if found.violations else State.OK if found.checked else State.NOT_EXERCISED
    return Verdict(
        name=invariant.name,
        promise=invariant.promise,
        state=state,
        checked=found.checked,
        violations=found.violations,
        note=found.note,
    )
