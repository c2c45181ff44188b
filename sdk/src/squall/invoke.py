"""One call, from arguments to result: what `remote`, `remote_gen`, `spawn` and `FunctionCall.get` do on the wire.

Owns the headers of a call and the meaning of result frames. Maps are in `mapping`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from squall import blocking, output, payload, spawning, tracing
from squall.client import BROKEN, Answer, Client, Retry, query
from squall.errors import (
    CallCancelledError,
    CallExpiredError,
    DeserializationError,
    ExecutionError,
    FunctionTimeoutError,
    InvalidError,
    SquallError,
    from_wire,
)
from squall.http_api.protocol import FrameKind, Header, ServerInfo, blob_ref, frames, parse_blob_ref
from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall.spec import Encoding, Kind, Outcome

WAIT_S = 55
"""How long the gateway may hold a request that waits for a result."""
WAIT_TIMEOUT_S = WAIT_S + 15.0
CANCEL_TIMEOUT_S = 2.0


def no_names() -> Sequence[str]:
    """For functions whose signature is not known here."""
    return ()


class Target(NamedTuple):
    """What is called: a version of a function, or a method of it with class parameters."""

    client: Client
    recorder: tracing.Recorder
    app_id: str
    function: str
    function_id: str = ""
    """Pins a version; empty for the present one."""
    method: str = ""
    parameters: str = ""
    script: Optional[str] = None
    """Name of the user's `__main__` in the container, if it is there."""
    names: Callable[[], Sequence[str]] = no_names
    """Names of the positional parameters, for error messages."""
    options: str = ""
    """`http_api.protocol.encode_options` of what is different from the declaration; empty for nothing."""
    key: str = ""
    """Idempotency key of its calls; empty for none."""
    webhook: str = ""
    """URL that is told of the ends of its calls, in place of the declared one."""

    @property
    def label(self) -> str:
        """The name that the user knows."""
        return f"{self.function}.{self.method}" if self.method else self.function


def headers(target: Target, kind: Kind, span: tracing.CallSpan) -> dict[str, str]:
    """What every request that brings inputs says about them."""
    values = {
        Header.FUNCTION: f"{target.app_id}/{target.function}",
        Header.KIND: kind.value,
        Header.ENCODING: Encoding.PICKLE.value,
        Header.TRACEPARENT: span.traceparent,
    }
    if target.function_id:
        values[Header.FUNCTION_ID] = target.function_id
    if target.method:
        values[Header.METHOD] = target.method
    if target.parameters:
        values[Header.PARAMETERS] = target.parameters
    if target.options:
        values[Header.OPTIONS] = target.options
    if target.webhook:
        require_webhooks(target.client.info())
        values[Header.WEBHOOK] = target.webhook
    if target.key:
        if kind not in (Kind.REMOTE, Kind.SPAWN):
            raise InvalidError(
                f"{target.label}: an idempotency key is for .remote() and .spawn()",
                fix="Make the map or the generator call without `with_idempotency_key`.",
            )
        values[Header.IDEMPOTENCY_KEY] = target.key
    current = tracing.current_input()
    if current is not None:
        values[Header.PARENT] = current.call
    return values


def require_webhooks(server: ServerInfo) -> None:
    """Raises `InvalidError` for a server that would leave them out without a word."""
    if not server.webhooks:
        raise InvalidError(f"the server (squall {server.version}) has no webhooks", fix="Upgrade it.")


def encode(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> payload.Payload:
    """The payload of one input. Raises `SerializationError` naming the argument."""
    return payload.encode_arguments(args, kwargs, target.script, target.names, target.label)


class _Call:
    """A call that is being made: its request, and the end of its span."""

    def __init__(self, target: Target, kind: Kind, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        info = target.client.info()
        self.target, self.span = target, tracing.begin(info.trace_ratio)
        self.id = spawning.new_call_id(info.shards) if kind is Kind.SPAWN else new_call_id(info.shards)
        encoded = encode(target, args, kwargs)
        sent_ns = time.time_ns()
        self.headers = headers(target, kind, self.span)
        self.headers[Header.CALL] = self.id
        self.headers[Header.SENT] = f"{self.span.start_ns}:{sent_ns}"
        self.body = encoded.inline or b""
        if encoded.inline is None:
            self.headers[Header.BLOB] = self._bring(encoded)

    def _bring(self, encoded: payload.Payload) -> str:
        """A large payload goes to the blob store, with the call itself if that is known to work; its reference."""
        client = self.target.client
        if isinstance(encoded.body, bytes) and client.info().blobs_with_calls:
            self.body = encoded.body
            return blob_ref(encoded.sha256, encoded.size)
        try:
            return client.upload(encoded.sha256, encoded.body)
        finally:
            encoded.close()

    @property
    def goes_with_others(self) -> bool:
        """Whether its payload is inline and its id is its own."""
        return not self.target.key and Header.BLOB not in self.headers and self.target.client.info().spawns_together

    def answered(self, answer: Answer) -> None:
        """The call was accepted: with a key it may be one that was made before."""
        if self.target.key:
            self.id = str(json.loads(answer.body)["call"])

    def ended(self, decode_ns: tuple[int, int] = (0, 0), error: str = "") -> None:
        self.target.recorder.call_ended(self.span, self.id, self.target.label, decode_ns, error)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Record a failure, and cancel the call when the caller is interrupted: nobody will ask for its result."""
        try:
            yield
        except Exception as error:
            self.ended(error=f"{type(error).__name__}: {error}")
            raise
        except BaseException:
            if not self.target.key:  # others may wait for a call that has a key
                cancel_quietly(self.target.client, self.id)
            self.ended(error="interrupted")
            raise


def remote(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Make a call and wait for its result."""
    call = _Call(target, Kind.REMOTE, args, kwargs)
    with call.watched():
        path = query(Route.CALLS, wait=WAIT_S)
        answer = target.client.request("POST", path, call.headers, call.body, WAIT_TIMEOUT_S)
        if answer.status == 200:
            frame = only_frame(answer.body)
        else:
            call.answered(answer)
            frame = wait_for(target.client, call.id, 0, None, _tell(call.id, answer))
        decode_start = time.time_ns()
        value = value_of(target.client, frame)
    call.ended((decode_start, time.time_ns()))
    return value


def spawn(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Make a call that goes on without its caller; its id."""
    call = _Call(target, Kind.SPAWN, args, kwargs)
    with call.watched():
        if call.goes_with_others:
            spawning.send(target.client, call.headers, call.body)
        else:
            call.answered(target.client.request("POST", query(Route.CALLS, wait=0), call.headers, call.body))
    call.ended()
    return call.id


def wait_for(client: Client, call: str, index: int, timeout_s: Optional[float], told: bool = False) -> frames.Frame:
    """The result frame of an input. Raises the builtin TimeoutError after `timeout_s` (0 asks once).

    `told`: the output was told already that the call waits."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = WAIT_S if deadline is None else max(0.0, min(WAIT_S, deadline - time.monotonic()))
        path = query(Route.CALL_RESULT.format(call=call), index=index, wait=round(left, 3))
        answer = client.request("GET", path, timeout_s=left + 15.0)
        if answer.status == 200:
            if told:
                output.current().waiting(call, "")
            return only_frame(answer.body)
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"{call} has no result after {timeout_s:g} s")
        told = _tell(call, answer) or told


def _tell(call: str, answer: Answer) -> bool:
    """Tell the output why a call waits; whether there was anything to tell."""
    reason = json.loads(answer.body).get("waiting") if answer.body else None
    if reason:
        output.current().waiting(call, str(reason))
    return bool(reason)


def only_frame(body: bytes) -> frames.Frame:
    """The frame that is a whole answer."""
    ready = frames.Decoder().feed(body)
    if len(ready) != 1:
        raise ExecutionError(f"the server answered {len(ready)} frames instead of one")
    if ready[0].kind == FrameKind.ERROR:
        raise from_wire(ready[0].meta)
    return ready[0]


def cancel_quietly(client: Client, call: str) -> None:
    """Cancel a call that nobody waits for any more; the server finds abandoned calls itself, only later."""
    with contextlib.suppress(SquallError, OSError), blocking.sheltered():
        client.once("POST", Route.CALL_CANCEL.format(call=call), {"terminate_containers": False}, CANCEL_TIMEOUT_S)


# --- generators ------------------------------------------------------------------------------------------------------


def remote_gen(target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """Make a call of a generator and yield what it yields, as it comes."""
    call = _Call(target, Kind.GENERATOR, args, kwargs)
    with call.watched():
        yield from _items(call)
    call.ended()


def _items(call: _Call) -> Iterator[Any]:
    client, taken = call.target.client, 0
    with contextlib.closing(_frames(call)) as found:
        for frame in found:  # what user code raised may be an OSError, which is no broken connection
            if frame.kind == FrameKind.ITEM:
                taken = _expect(call.id, frame, taken)
                yield item_of(client, frame)
            elif frame.kind == FrameKind.RESULT:
                value_of(client, frame, is_generator=True)
                return
            else:
                _signal(call.id, frame, taken)


def _frames(call: _Call) -> Generator[frames.Frame, None, None]:
    """What the server says of a generator's call, over as many connections as it takes."""
    client = call.target.client
    retry = Retry(client)
    path = query(Route.CALLS, wait=WAIT_S)
    while True:
        try:
            with client.stream("POST", path, call.headers, call.body) as stream:
                for ready in stream.frames():
                    retry.progress()
                    yield from ready
            raise EOFError("the stream ended without a result")
        except BROKEN as error:
            retry.wait(error)


def _expect(call: str, frame: frames.Frame, taken: int) -> int:
    seq = int(frame.meta.get("seq", taken))
    if seq != taken:
        raise ExecutionError(
            f"items {taken} to {seq - 1} of {call} were lost while the connection to the server was broken",
            fix="Iterate again; results that must survive a break belong in the return value of `remote` or in a file.",
        )
    return taken + 1


def _signal(call: str, frame: frames.Frame, taken: int) -> None:
    """Frames of a generator's stream that bring no value."""
    if frame.kind == FrameKind.ERROR:
        raise from_wire(frame.meta)
    if frame.kind == FrameKind.KEEPALIVE and frame.meta.get("waiting"):
        output.current().waiting(call, str(frame.meta["waiting"]))
    if frame.kind == FrameKind.RESTARTED and taken:
        raise ExecutionError(
            f"the container of the generator {call} was lost after {taken} items and it began anew",
            fix="Iterate again: squall does not repeat items that your program has seen.",
        )


# --- values ----------------------------------------------------------------------------------------------------------


def item_of(client: Client, frame: frames.Frame) -> Any:
    """The value in an ITEM frame."""
    return _load(client, frame)


def value_of(client: Client, frame: frames.Frame, is_generator: bool = False) -> Any:
    """The value in a RESULT frame, or the exception that it tells of, raised."""
    if frame.meta.get("outcome") != Outcome.SUCCEEDED.value:
        raise failure_of(client, frame)
    return None if is_generator else _load(client, frame)


def _load(client: Client, frame: frames.Frame) -> Any:
    encoding, blob = str(frame.meta.get("encoding") or Encoding.PICKLE.value), frame.meta.get("blob")
    if not blob:
        return payload.decode(encoding, frame.payload)
    sha256, size = parse_blob_ref(str(blob))
    if frame.payload and hashlib.sha256(frame.payload).hexdigest() == sha256:  # the gateway put it into its answer
        return payload.decode(encoding, frame.payload)
    with payload.receiving_file(size) as file:

        def restart() -> None:
            file.seek(0)
            file.truncate()

        client.download(sha256, file.write, restart)
        return payload.decode_file(encoding, file)


class RemoteTraceback(Exception):
    """The traceback in the container, as text: the `__cause__` of an exception that came from there."""

    def __str__(self) -> str:
        return f'\n"""\n{str(self.args[0]).rstrip()}\n"""'


_OUTCOME_ERRORS = {
    Outcome.TIMED_OUT.value: FunctionTimeoutError,
    Outcome.CANCELLED.value: CallCancelledError,
    Outcome.EXPIRED.value: CallExpiredError,
}


def failure_of(client: Client, frame: frames.Frame) -> BaseException:
    """The exception that a RESULT frame tells of: the user's own class, or one of the catalogue."""
    told: dict[str, Any] = dict(frame.meta.get("error") or {})
    call, kind = str(frame.meta.get("call", "")), str(told.get("kind", ""))
    if kind != "user":
        cls = _OUTCOME_ERRORS.get(str(frame.meta.get("outcome")), ExecutionError)
        wire = {
            "code": kind or cls.code,
            "message": told.get("message") or "",
            "fix": told.get("fix"),
            "data": told.get("data"),
        }
        error = from_wire(wire)
        error.data.setdefault("call", call)
        return _with_traceback(error, told)
    try:
        error_raised = _load(client, frame) if frame.payload or frame.meta.get("blob") else None
    except DeserializationError as unloadable:
        return _as_text(told, call, unloadable)
    if not isinstance(error_raised, BaseException):
        return _as_text(told, call, None)
    return _with_traceback(error_raised, told)


def _with_traceback(error: BaseException, told: Mapping[str, Any]) -> BaseException:
    """`error` with the text at the end of its chain: causes that came with it from the container stay."""
    if told.get("traceback"):
        last, seen = error, {id(error)}
        while True:
            earlier = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
            if earlier is None or id(earlier) in seen:
                break
            last = earlier
            seen.add(id(last))
        last.__cause__ = RemoteTraceback(str(told["traceback"]))
    return error


def _as_text(told: Mapping[str, Any], call: str, unloadable: Optional[Exception]) -> ExecutionError:
    """A user's exception whose class is not here."""
    module, name = str(told.get("module") or ""), str(told.get("type") or "Exception")
    full = f"{module}.{name}" if module not in ("", "builtins") else name
    error = ExecutionError(
        f"{full}: {told.get('message', '')}",
        fix="Make the module of the exception importable here to get the exception itself.",
        call=call,
        unloadable=str(unloadable or ""),
    )
    _with_traceback(error, told)
    return error
