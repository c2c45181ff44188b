"""What runner and agent say to each other about inputs, as values. Pure; a runner may send anything.

Everything here raises KeyError, TypeError or ValueError for frames that are not what they should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.spec import Encoding
from squall_gpu_agent.backend import Failed, FailureKind, FullDisk, InputRequest, Output, Phase
from squall_runner.frames import Frame, FromRunner

Key = tuple[str, int]
Payload = tuple[bytes | None, Path | None, int]
"""Content or file, and size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The runner has imported the code and run the enter hooks."""

    booted_ns: int
    """Its clock at its first line."""
    phases: tuple[Phase, ...]
    lines_up: bool
    """Inputs run one by one, in the order in which they came."""
    report: Mapping[str, Any]
    """What a template says about itself; empty for containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartError:
    """Import or an enter hook raised."""

    type_name: str
    message: str
    traceback: str
    pickled: bytes | None
    booted_ns: int
    phases: tuple[Phase, ...]
    disk: FullDisk | None = None


def parse_started(frame: Frame) -> Ready | StartError:
    """READY or START_FAILED as a value."""
    meta = frame.meta
    booted_ns, phases = int(meta["booted_ns"]), _phases(meta["phases"])
    if frame.kind == FromRunner.READY:
        return Ready(booted_ns=booted_ns, phases=phases, lines_up=bool(meta.get("lines_up")), report=meta)
    return StartError(
        type_name=_type_name(meta),
        message=str(meta["message"]),
        traceback=str(meta["traceback"]),
        pickled=frame.payload or None,
        booted_ns=booted_ns,
        phases=phases,
        disk=_disk(meta["disk"]) if meta.get("disk") else None,
    )


def input_meta(request: InputRequest) -> dict[str, Any]:
    """The fields of INPUT."""
    meta: dict[str, Any] = {
        "call": request.call,
        "index": request.index,
        "attempt": request.attempt,
        "method": request.method,
        "encoding": request.encoding.value,
    }
    if request.path is not None:
        meta["path"] = request.path
    if request.traceparent:
        meta["traceparent"] = request.traceparent
    return meta


def key_of(frame: Frame) -> Key:
    """Which input a frame is about."""
    call = frame.meta["call"]
    if not isinstance(call, str):
        raise TypeError("an input is named by a string and a number")
    return call, int(frame.meta["index"])


def failed_of(frame: Frame) -> Failed:
    """FAILED as a value."""
    meta = frame.meta
    return Failed(
        kind=FailureKind(meta["kind"]),
        type_name=str(meta["type"]),
        module=str(meta["module"]),
        message=str(meta["message"]),
        traceback=str(meta["traceback"]),
        pickled=frame.payload or None,
        items=int(meta["items"]),
        started_ns=int(meta["started_ns"]),
        ended_ns=int(meta["ended_ns"]),
        spans=_phases(meta["spans"]),
        disk=_disk(meta["disk"]) if meta.get("disk") else None,
    )


def _disk(told: Mapping[str, Any]) -> FullDisk:
    return FullDisk(str(told["place"]), int(told["used"]), int(told["files"]), bool(told["full"]))


def output_of(frame: Frame, encoding: Encoding, items: int, payload: Payload) -> Output:
    """OUTPUT as a value."""
    content, path, size = payload
    meta = frame.meta
    read, started, ended, written = (
        *(int(meta["read_ns"]), int(meta["started_ns"])),
        *(int(meta["ended_ns"]), int(meta["written_ns"])),
    )
    return Output(
        encoding=encoding,
        payload=content,
        path=path,
        size=size,
        items=items,
        started_ns=started,
        ended_ns=ended,
        spans=(
            Phase("arguments.load", read, started - read),
            Phase("user code", started, ended - started),
            Phase("result.dump", ended, written - ended),
        ),
    )


def _phases(rows: Iterable[Any]) -> tuple[Phase, ...]:
    return tuple(Phase(str(name), int(start), int(duration)) for name, start, duration in rows)


def _type_name(meta: Mapping[str, Any]) -> str:
    module, name = str(meta["module"]), str(meta["type"])
    return name if module == "builtins" else f"{module}.{name}"
