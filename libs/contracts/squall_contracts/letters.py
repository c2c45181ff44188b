"""Dead letters: spawned inputs that ended badly, with everything that is needed to run them again; and the redrives.

A letter is written before the result that it is about (record before ack would otherwise leave a failed input without
one), so a letter alone proves nothing: it counts once RESULTS holds an ending that makes a dead letter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from squall.spec import Kind, Outcome
from squall_contracts.calls import CallRequested, CallResult
from squall_contracts.envelope import HotMessage

DEAD = frozenset({Outcome.FAILED.value, Outcome.TIMED_OUT.value, Outcome.EXPIRED.value})
"""Endings that nobody chose. A cancelled input was ended by somebody who knows of it."""


@dataclass(frozen=True)
class DeadLetter(HotMessage):
    """A spawned input that ended badly. Subject `letters.r.<workspace>.<app>.<call>.<index>.<failed at, ms>`, kept as
    long as its result. The error is in the result, the attempts are in ATTEMPTS."""

    TYPE: ClassVar[str] = "dead_letter"

    call: str
    index: int
    workspace: str
    app: str
    function: str
    """Function id: the version that it ran on."""
    pool: str
    outcome: str
    failed_at: float
    request: bytes = b""
    """The accepted input (`CallRequested`) as it lies in the journal, which forgets it earlier; empty when it could not
    be read."""


@dataclass(frozen=True)
class Redriven(HotMessage):
    """A dead letter was made a new call. Create-only, on two subjects: `redrives.r.<workspace>.<call>.<index>` (the
    letter) and `redrives.r.<workspace>.<into>.from` (the new call)."""

    TYPE: ClassVar[str] = "redriven"

    call: str
    index: int
    workspace: str
    into: str
    """The new call; it has the input as its only one."""
    at: float


def makes_dead_letter(request: CallRequested, outcome: str) -> bool:
    """Whether an input that ends so is kept as a dead letter: somebody who waits for it hears of its end anyway."""
    return request.kind == Kind.SPAWN.value and outcome in DEAD


def dead_letter(request: CallRequested, result: CallResult) -> DeadLetter:
    """The letter about an input that ends with `result`. One that could not be read is known by its subject only, hence
    without a function; it cannot be run again."""
    return DeadLetter(
        call=request.call,
        index=request.index,
        workspace=request.workspace,
        app=request.app,
        function=request.function,
        pool=request.pool,
        outcome=result.outcome,
        failed_at=result.ended_at,
        request=request.encode() if request.function else b"",
    )
