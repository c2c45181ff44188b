"""Admission: whether inputs are taken, and until when they may wait. Pure; everything it looks at is an argument.

A refusal comes before the acknowledgement, never after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from squall.errors import (
    ConflictError,
    InvalidError,
    RequestSizeError,
    ResourceExhaustedError,
    ServiceError,
    SquallError,
    StorageFullError,
)
from squall.spec import INLINE_LIMIT_BYTES, MAX_PAYLOAD_BYTES, Kind

BUS_GRACE_S = 1.0
"""A restarted bus server is back within this time; a publish waits so long before calls are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one pool and one request may take."""

    pending: int = 1_000_000
    """Inputs of a pool that wait or run, of whatever kind."""
    pending_sync: int = 25_000
    """The same for inputs that somebody waits for (remote, generator, map)."""
    inline_bytes: int = INLINE_LIMIT_BYTES
    payload_bytes: int = MAX_PAYLOAD_BYTES


class Wanted(NamedTuple):
    """What is asked for: inputs of one call."""

    kind: Kind
    inputs: int = 1
    inline_bytes: int = 0
    """Size of the largest payload in the request."""
    blob_bytes: int = 0
    """Size of the largest payload in the blob store."""
    is_generator: bool = False
    """What the method is declared to be."""


class Situation(NamedTuple):
    """What is known at this moment about the app, its pool and the platform."""

    app: str
    app_state: str
    pending: int = 0
    """Inputs of the pool, of every kind."""
    pending_sync: int = 0
    """Those of them that somebody waits for."""
    storage_full: str = ""
    """Which storage has no room; empty when all have."""
    bus_down_s: float = 0.0


class Admitted(NamedTuple):
    """The inputs are taken once they are in the journal."""

    deadline: float
    """Unix seconds after which they must not start."""


class Refused(NamedTuple):
    """They are not; the error says why, and what to do."""

    error: SquallError


def admit(
    wanted: Wanted, situation: Situation, limits: Limits, *, queue_limit_s: float, now: float
) -> Admitted | Refused:
    """Take inputs, or say why not. What the caller can correct comes before what only time can."""
    error = (
        _wrong_call(wanted)
        or _too_large(wanted, limits)
        or _stopped(situation)
        or _out_of_order(situation)
        or _too_many(wanted, situation, limits)
    )
    return Admitted(now + queue_limit_s) if error is None else Refused(error)


def _wrong_call(wanted: Wanted) -> SquallError | None:
    if wanted.inputs < 1:
        return InvalidError("the request has no inputs")
    if wanted.is_generator and wanted.kind is not Kind.GENERATOR:
        return InvalidError("the function is a generator", fix="Call it with `remote_gen`.")
    if wanted.kind is Kind.GENERATOR and not wanted.is_generator:
        return InvalidError("the function is not a generator", fix="Call it with `remote`.")
    return None


def _too_large(wanted: Wanted, limits: Limits) -> SquallError | None:
    if wanted.inline_bytes > limits.inline_bytes:
        return RequestSizeError(
            f"an inline payload of {wanted.inline_bytes} bytes; the limit is {limits.inline_bytes}",
            fix="Upload payloads above the limit with PUT /v1/blobs first and send their reference.",
        )
    if wanted.blob_bytes > limits.payload_bytes:
        return RequestSizeError(f"a payload of {wanted.blob_bytes} bytes; the limit is {limits.payload_bytes}")
    return None


def _stopped(situation: Situation) -> SquallError | None:
    if situation.app_state != "stopped":
        return None
    return ConflictError(f"app {situation.app} is stopped", fix="Run or deploy the app again, then call.")


def _out_of_order(situation: Situation) -> SquallError | None:
    if situation.storage_full:
        return StorageFullError(f"{situation.storage_full}; no new calls are taken")
    if situation.bus_down_s > BUS_GRACE_S:
        return bus_is_down(situation.bus_down_s)
    return None


def bus_is_down(down_s: float) -> SquallError:
    """Nothing can be stored or read at the moment."""
    return ServiceError(f"the bus has not been reachable for {down_s:.1f} s")


def _too_many(wanted: Wanted, situation: Situation, limits: Limits) -> SquallError | None:
    most = limits.pending if wanted.kind is Kind.SPAWN else min(limits.pending, limits.pending_sync)
    if wanted.inputs > most:
        # However long they waited, so many would never be taken at once.
        return RequestSizeError(
            f"{wanted.inputs} inputs in one request; a function may have {most} pending",
            fix="Send fewer inputs at once, or raise the gateway's settings max_pending and max_pending_sync.",
        )
    if situation.pending + wanted.inputs > limits.pending:
        return _exhausted(situation.pending, limits.pending, "max_pending")
    # Both must be over: the sync count is this gateway's own and may lag; the total is the queue's.
    sync = min(situation.pending, situation.pending_sync)
    if wanted.kind is not Kind.SPAWN and sync + wanted.inputs > limits.pending_sync:
        return _exhausted(sync, limits.pending_sync, "max_pending_sync")
    return None


def _exhausted(pending: int, limit: int, setting: str) -> SquallError:
    return ResourceExhaustedError(
        f"{pending} inputs of this function are pending; the limit is {limit}",
        fix="Wait until some have finished (the SDK does), or raise the gateway's setting {setting}.",
        setting=setting,
        pending=pending,
        limit=limit,
    )
