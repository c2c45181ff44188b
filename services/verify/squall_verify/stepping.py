"""The log of single requests to state and web functions: a line before each, a line after it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from squall import errors
from squall_service.clock import SystemClock
from squall_verify.evidence import MAIN
from squall_verify.state import CONFLICT, DONE, FAILED, REFUSED, UNKNOWN, Step

_CLOCK = SystemClock()


@dataclass
class Told:
    """What is known of a request so far; whoever makes it fills this in."""

    got: list[str] = field(default_factory=list)
    version: int = 0
    outcome: str = DONE
    detail: str = ""


def name_of_log(client: int) -> str:
    """Of a client, in the folder of the run."""
    return f"steps-{client}.jsonl"


class StepLog:
    """One caller's."""

    def __init__(self, path: Path, workspace: str = MAIN) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._workspace = workspace
        self._numbers = itertools.count()

    @contextmanager
    def step(self, op: str, kind: str, what: str, place: str = "", *values: str) -> Iterator[Told]:
        """The block makes one request. What it raises is an outcome, and goes no further."""
        number, told = next(self._numbers), Told()
        begun = {"kind": kind, "what": what, "place": place, "values": values, "workspace": self._workspace}
        self._write(op, number, began=_CLOCK.now(), **begun)
        try:
            yield told
        except Exception as error:
            told.outcome = told.outcome if told.outcome != DONE else outcome_of(error)
            told.detail = f"{type(error).__name__}: {error}"[:300]
        self._write(
            op,
            number,
            ended=_CLOCK.now(),
            got=told.got,
            version=told.version,
            outcome=told.outcome,
            detail=told.detail,
        )

    def _write(self, op: str, number: int, **more: object) -> None:
        os.write(self._file, (json.dumps({"op": op, "number": number, **more}) + "\n").encode())


def outcome_of(error: BaseException) -> str:
    """What an error says about the request: refused, lost against another one, or nothing."""
    if isinstance(error, errors.ResourceExhaustedError | errors.StorageFullError):
        return REFUSED
    if isinstance(error, errors.ConflictError):
        return CONFLICT
    if isinstance(error, errors.ServiceError | errors.InternalError | TimeoutError | errors.DataLossError):
        return UNKNOWN
    return FAILED


def steps(folder: Path) -> tuple[Step, ...]:
    """Those of all callers, in order of their beginnings. One without a second line is unknown."""
    found = [step for file in sorted(folder.glob("steps-*.jsonl")) for step in _steps_of(file)]
    return tuple(sorted(found, key=lambda each: each.began))


def _steps_of(file: Path) -> Iterator[Step]:
    lines: dict[tuple[str, int], dict[str, object]] = {}
    for line in file.read_text().splitlines():
        try:
            read = json.loads(line)
        except json.JSONDecodeError:
            continue  # its caller was killed
        lines.setdefault((read["op"], read["number"]), {}).update(read)
    for each in lines.values():
        for name in ("values", "got"):
            each[name] = tuple(each.get(name, ()))  # type: ignore[arg-type]
        yield Step(**({"outcome": UNKNOWN} | each))  # type: ignore[arg-type]
