"""Calls in JSON, as they are answered: values, failures, lines of a stream. Results are put into answers as they are,
without reading them: the runner made them JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from squall import errors
from squall.errors import (
    CallCancelledError,
    CallExpiredError,
    DataLossError,
    ExecutionError,
    FunctionFailedError,
    FunctionTimeoutError,
    InvalidError,
    SerializationError,
    SquallError,
)
from squall.http_api.protocol import FrameKind, frames, parse_blob_ref
from squall.spec import Encoding, Outcome
from squall_contracts.calls import CallResult
from squall_gateway.answers import public
from squall_gateway.blob_places import BlobPlaces

EMBED_BYTES = 8 << 20
"""A larger value is answered as the path where it lies."""
AT_ONCE = 8
"""Values from the blob store that are held in memory at the same time."""
NOT_JSON = (
    "Return what JSON has: null, booleans, numbers that are not NaN or infinite, text, lists, dicts with text keys."
)
_OUTCOMES: dict[str, type[SquallError]] = {
    Outcome.TIMED_OUT.value: FunctionTimeoutError,
    Outcome.CANCELLED.value: CallCancelledError,
    Outcome.EXPIRED.value: CallExpiredError,
}


class JsonValues:
    """Values of results and items, wherever they lie."""

    def __init__(self, blobs: BlobPlaces) -> None:
        self._blobs = blobs
        self._reading = asyncio.Semaphore(AT_ONCE)

    async def result(self, record: CallResult) -> bytes:
        """The members of an answer that tell a result. Raises the failure that the record tells of."""
        if record.outcome != Outcome.SUCCEEDED.value:
            raise failure_of(record)
        return await self.member("result", record.workspace, record.encoding, record.payload, record.blob)

    async def member(self, name: str, workspace: str, encoding: str, payload: bytes, blob: str | None) -> bytes:
        """`"name": value`, or `"name_at": path` for a value that is too large to be embedded."""
        if encoding != Encoding.JSON.value:
            raise InvalidError(
                f"the {name} is encoded as {encoding}: the call was not made in JSON",
                fix="Read it with the Python SDK: `squall.FunctionCall.from_id(...).get()`.",
            )
        if blob is None:
            return b'"%s":%s' % (name.encode(), payload or b"null")
        sha256, size = parse_blob_ref(blob)
        if size > EMBED_BYTES:
            await self._blobs.recorded(workspace, [blob])
            return b'"%s_at":"/v1/blobs/%s"' % (name.encode(), sha256.encode())
        async with self._reading:
            return b'"%s":%s' % (name.encode(), await self._blobs.read(workspace, sha256))

    async def lines(
        self, call: str, workspace: str, stream: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """The frames of a generator's stream as lines."""
        yield line({"call": call})
        decoder = frames.Decoder()
        async with aclosing(stream) as parts:
            async for part in parts:
                for frame in decoder.feed(part):
                    yield await self._line(call, workspace, frame)

    async def _line(self, call: str, workspace: str, frame: frames.Frame) -> bytes:
        meta = frame.meta
        match frame.kind:
            case FrameKind.ITEM:
                encoding = str(meta.get("encoding", Encoding.PICKLE.value))
                member = await self.member("item", workspace, encoding, frame.payload, meta.get("blob"))
                return b"{%s}\n" % member
            case FrameKind.RESTARTED:
                return line({"restarted": meta["attempt"]})
            case FrameKind.RESULT if meta["outcome"] == Outcome.SUCCEEDED.value:
                return line({"done": True, "items": meta.get("items") or 0})
            case FrameKind.RESULT:
                raise failure(call, str(meta["outcome"]), meta.get("error") or {})
            case _:
                raise DataLossError(f"a frame of kind {frame.kind} in the stream of {call}")


def failure_of(record: CallResult) -> SquallError:
    """What ended an input, as an error of the catalogue."""
    return failure(record.call, record.outcome, record.error or {})


def failure(call: str, outcome: str, told: Mapping[str, object]) -> SquallError:
    """The same from its parts. An exception of user code keeps its class, message and traceback."""
    kind, message = str(told.get("kind", "")), str(told.get("message") or "")
    traceback = str(told.get("traceback") or "")
    if kind == "user":
        name, module = str(told.get("type") or "Exception"), str(told.get("module") or "")
        return FunctionFailedError(
            f"{name}: {message}", call=call, type=name, module=module, text=message, traceback=traceback
        )
    cls = _OUTCOMES.get(outcome, ExecutionError)
    fix = NOT_JSON if kind == SerializationError.code else told.get("fix")
    error = errors.from_wire({"code": kind or cls.code, "message": message, "fix": fix, "data": told.get("data")})
    error.data.setdefault("call", call)
    if traceback and kind != SerializationError.code:  # that one is the encoder's own
        error.data.setdefault("traceback", traceback)
    return error


def wire_of(error: SquallError) -> dict[str, object]:
    """The error as a JSON object."""
    told: dict[str, object] = json.loads(json.dumps(errors.to_wire(public(error)), default=str))
    return told


def line(told: Mapping[str, object]) -> bytes:
    """One line of NDJSON."""
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"


def error_line(error: SquallError) -> bytes:
    """The last line of a stream that broke, or whose call failed."""
    return line({"error": wire_of(error)})
