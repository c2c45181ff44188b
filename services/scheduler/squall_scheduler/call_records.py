"""Call records: what the reconciler writes about an input. Builds messages, sends none."""

from __future__ import annotations

from squall.errors import CallExpiredError
from squall.spec import FunctionSpec, Kind, Outcome
from squall_bus import Record, Stored
from squall_contracts import subjects
from squall_contracts.calls import REQUEUED_HEADER, CallRequested, CallResult
from squall_contracts.letters import dead_letter, makes_dead_letter
from squall_contracts.retention import SPAWNED_S, result_ttl_s

ONLY_IF_ABSENT = {"Nats-Expected-Last-Subject-Sequence": "0"}
"""Several reconcilers, or a late copy by the source, cannot put an input into its queue twice."""
TTL_HEADER = "Nats-TTL"
SERVER_HEADERS = ("Nats-",)
MARGIN_S = 3600.0
"""By which the journal outlives the last moment at which an input can be running (squall_contracts.retention)."""


def ttl_s(stored: Stored) -> float:
    """The time to live that a journal record was written with; 0 = it has none."""
    return float(stored.headers.get(TTL_HEADER, "0").removesuffix("s") or 0)


def over_at(stored: Stored) -> float:
    """After this no attempt of the input can be running."""
    lives_s = ttl_s(stored)
    return stored.stored_at + lives_s - MARGIN_S if lives_s else float("inf")


def back_to_queue(region: str, request: CallRequested, stored: Stored, now: float) -> Record:
    """Puts an accepted input back into WORK."""
    own = {name: value for name, value in stored.headers.items() if not name.startswith(SERVER_HEADERS)}
    lives_s = ttl_s(stored)
    return Record(
        subjects.requeue(region, request.pool, request.call, request.index),
        stored.data,
        {**own, **ONLY_IF_ABSENT, REQUEUED_HEADER: "1"},
        None,
        max(1.0, stored.stored_at + lives_s - now) if lives_s else None,
    )


def expired(request: CallRequested, now: float, waiting: str) -> CallResult:
    """The result of an input that waited past its deadline; `waiting` says what for, if that is known."""
    waited_s = now - request.accepted_at
    why = f": {waiting}" if waiting else ""
    error = CallExpiredError(
        f"the call waited {waited_s:.0f} s in the queue, past its deadline{why}", waited_s=waited_s
    )
    return CallResult(
        call=request.call,
        index=request.index,
        workspace=request.workspace,
        outcome=Outcome.EXPIRED.value,
        attempt="",
        error={
            "kind": error.code,
            "type": type(error).__name__,
            "module": "squall.exception",
            "message": error.message,
            "traceback": "",
            "fix": error.hint,
            "data": error.data,
        },
        ended_at=now,
        function=request.function,
        pool=request.pool,
    )


def letter_record(region: str, request: CallRequested, result: CallResult, kept_s: float | None) -> Record | None:
    """The dead letter of a spawned input that ends with `result`; written before the result, kept as long."""
    if not makes_dead_letter(request, result.outcome):
        return None
    letter = dead_letter(request, result)
    return Record(
        subjects.letter(region, letter.workspace, letter.app, letter.call, letter.index, letter.failed_at),
        letter.encode(),
        None,
        f"{letter.workspace}.{letter.call}.{letter.index}.{result.outcome}.letter",
        kept_s,
    )


def result_record(region: str, result: CallResult, request: CallRequested, function: FunctionSpec | None) -> Record:
    """Where a result is recorded, for as long as it is kept."""
    kept_s = result_ttl_s(function, Kind(request.kind), keyed=request.keyed) if function is not None else SPAWNED_S
    return Record(
        subjects.result(region, result.workspace, result.call, result.index),
        result.encode(),
        None,
        f"{result.workspace}.{result.call}.{result.index}.{result.outcome}",
        kept_s,
    )
