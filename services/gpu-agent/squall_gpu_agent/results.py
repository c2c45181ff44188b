"""Results: turns the end of an attempt into the record that everybody reads. Pure.

The bytes of values and pickled exceptions are the user's and are never looked into; their sizes are bounded here, since
a runner may send anything.
"""

from __future__ import annotations

from typing import Any

from squall import errors
from squall.spec import INLINE_LIMIT_BYTES, Encoding, Outcome
from squall_contracts.calls import CallRequested, CallResult
from squall_gpu_agent.backend import Failed, FailureKind, FullDisk, StartFailed, StartFailureKind

MAX_MESSAGE_CHARS = 8 * 1024
MAX_TRACEBACK_CHARS = 32 * 1024
MAX_NAME_CHARS = 256

_CODES = {
    FailureKind.USER: "user",
    FailureKind.CANCELLED: errors.CallCancelledError.code,
    FailureKind.DESERIALIZATION: errors.DeserializationError.code,
    FailureKind.SERIALIZATION: errors.SerializationError.code,
    FailureKind.INFRA: errors.InternalFailure.code,
    FailureKind.DISK_FULL: errors.DiskFullError.code,
}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 20]} … ({len(text)} long)"


def user_error(failed: Failed) -> dict[str, Any]:
    """`error` of a result for what user code raised, or what went wrong with its data."""
    if failed.kind is FailureKind.DISK_FULL:
        return _disk_full(failed.message, failed.traceback, failed.disk or FullDisk("", 0, 0, still=True))
    return {
        "kind": _CODES[failed.kind],
        "type": _cut(failed.type_name, MAX_NAME_CHARS),
        "module": _cut(failed.module, MAX_NAME_CHARS),
        "message": _cut(failed.message, MAX_MESSAGE_CHARS),
        "traceback": _cut(failed.traceback, MAX_TRACEBACK_CHARS),
    }


def _disk_full(message: str, traceback: str, disk: FullDisk) -> dict[str, Any]:
    used_mib = min(max(disk.used_bytes, 0) >> 20, disk.limit_mib)
    error = errors.DiskFullError(message, used_mib=used_mib, limit_mib=disk.limit_mib, place=disk.place)
    return {**platform_error(error), "traceback": _cut(traceback, MAX_TRACEBACK_CHARS)}


def platform_error(error: errors.SquallError, **more: Any) -> dict[str, Any]:
    """`error` of a result for what the platform has to say."""
    return {
        "kind": error.code,
        "type": type(error).__name__,
        "module": "squall.exception",
        "message": _cut(error.message, MAX_MESSAGE_CHARS),
        "traceback": "",
        "fix": error.hint,
        "data": error.data,
        **more,
    }


def start_error(failure: StartFailed) -> dict[str, Any]:
    """`error` of a claim, and of the calls that waited for its container."""
    if failure.kind is StartFailureKind.USER_CODE:
        module, _, name = failure.type_name.rpartition(".")
        phase = "enter" if any(phase.name == "enter" for phase in failure.phases) else "import"
        if failure.disk is not None:
            return {**_disk_full(failure.message, failure.traceback, failure.disk), "phase": phase}
        return {
            "kind": "user",
            "phase": phase,
            "type": _cut(name, MAX_NAME_CHARS),
            "module": _cut(module, MAX_NAME_CHARS),
            "message": _cut(failure.message, MAX_MESSAGE_CHARS),
            "traceback": _cut(failure.traceback, MAX_TRACEBACK_CHARS),
        }
    kinds: dict[StartFailureKind, type[errors.SquallError]] = {
        StartFailureKind.IMAGE: errors.ImageBuildError,
        StartFailureKind.IMAGE_LOST: errors.ImageBuildError,
        StartFailureKind.TIMEOUT: errors.StartupTimeoutError,
    }
    error = kinds.get(failure.kind, errors.InternalFailure)(failure.message)
    return {**platform_error(error), "traceback": _cut(failure.traceback, MAX_TRACEBACK_CHARS), "phase": "start"}


def killed_error(reason: str, starts: int) -> dict[str, Any]:
    """`error` of the calls that waited for containers which were killed each time that they started."""
    error = errors.InternalFailure(
        f"the last {starts} containers were killed while they started: {reason}",
        fix="Most often import or @enter needs more memory than the machine has: load less there, or ask for a larger "
        "machine with memory=; the kernel's log of the machine (dmesg) names what was killed. Then deploy again.",
    )
    return {**platform_error(error), "phase": "start"}


def exception_payload(pickled: bytes | None) -> bytes:
    """The pickled exception, unless it is too large for a record; the text of the error is there in any case."""
    return pickled if pickled is not None and len(pickled) <= INLINE_LIMIT_BYTES else b""


def without_attempt(
    request: CallRequested, outcome: Outcome, error: dict[str, Any], now: float, payload: bytes = b""
) -> CallResult:
    """The record of an input that ends without having run here."""
    return CallResult(
        call=request.call,
        index=request.index,
        workspace=request.workspace,
        outcome=outcome.value,
        attempt="",
        encoding=Encoding.PICKLE.value,
        payload=payload,
        error=error,
        ended_at=now,
        function=request.function,
        pool=request.pool,
    )


def expired(request: CallRequested, now: float) -> CallResult:
    """It waited past its deadline."""
    waited_s = now - request.accepted_at
    error = errors.CallExpiredError(
        f"the call waited {waited_s:.0f} s in the queue, past its deadline", waited_s=waited_s
    )
    return without_attempt(request, Outcome.EXPIRED, platform_error(error), now)


def cancelled(request: CallRequested, now: float) -> CallResult:
    """It was cancelled, and whoever did so has not recorded it."""
    return without_attempt(request, Outcome.CANCELLED, platform_error(errors.CallCancelledError()), now)


def timed_out_error(timeout_s: float) -> dict[str, Any]:
    """`error` of an attempt that ran too long."""
    message = f"the function ran longer than its timeout of {timeout_s:g} s"
    return platform_error(errors.FunctionTimeoutError(message, timeout_s=timeout_s))


def infra_error(reason: str, history: list[str], *, out_of_memory: bool) -> dict[str, Any]:
    """`error` of an input that was lost too often, with every loss; `out_of_memory`: the last one was for that."""
    message = "\n".join([reason, *(f"  {line}" for line in history)])
    error = errors.OutOfMemoryError if out_of_memory else errors.InternalFailure
    return platform_error(error(message, attempts=len(history)))
