"""Bodies about calls: their list, cancelling many, dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional


@dataclass(frozen=True)
class CallSummary:
    """One row of GET /v1/calls, and the head of GET /v1/calls/{id}."""

    call: str
    app: str
    function: str
    kind: str
    state: str
    """"queued", "running" or a value of `Outcome`; a map is `running` until every known input ended."""
    inputs: int
    finished: int
    failed: int
    accepted_at: float
    ended_at: Optional[float] = None
    error: str = ""


@dataclass(frozen=True)
class CancelMany:
    """POST /v1/cancels: cancel what of a call or of an app is queued or runs."""

    request: str
    """A name of the caller's making: the same one again joins the cancel that runs, or tells its outcome."""
    call: str = ""
    app: str = ""
    """Name or id."""
    environment: str = "main"
    function: str = ""
    """With `app`: only of this function."""
    terminate_containers: bool = False


@dataclass(frozen=True)
class LetterInfo:
    """One row of GET /v1/letters: a spawned input that ended badly and can be run again."""

    call: str
    index: int
    app: str
    function: str
    version: int
    """Of the function, when it ran; 0 if that is no longer known."""
    outcome: str
    """failed, timed_out or expired."""
    error: str
    accepted_at: float
    failed_at: float
    redriven_to: str = ""
    """The call that repeats it."""


@dataclass(frozen=True)
class RedriveLetters:
    """POST /v1/letters/redrive: run dead letters again that were not yet, oldest first."""

    app: str = ""
    """Name or id; empty for every app of the workspace."""
    environment: str = "main"
    since: float = 0.0
    """Unix seconds: only what failed after it."""
    limit: int = 1000
    cursor: str = ""
    """Go on after the page whose answer had it."""


@dataclass(frozen=True)
class RedrivenInput:
    """A dead letter and the call that repeats it."""

    call: str
    index: int
    into: str


@dataclass(frozen=True)
class RefusedRedrive:
    """A dead letter that could not be made a call, and why."""

    call: str
    index: int
    error: Mapping[str, Any]
    """The wire form of an error."""


@dataclass(frozen=True)
class Redrives:
    """Answer to a redrive."""

    redriven: tuple[RedrivenInput, ...] = ()
    refused: tuple[RefusedRedrive, ...] = ()
    cursor: str = ""
    """There may be more after it; empty = that was all."""
