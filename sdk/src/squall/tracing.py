"""The caller's side of a call's trace: ids, the traceparent, and rows sent to the gateway in the background.

Owns the queue of rows and its thread. A full queue drops rows; a call never waits for its trace.
"""

from __future__ import annotations

import atexit
import collections
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from squall.errors import SquallError
from squall.http_api.routes import Route
from squall.ids import in_sample, is_sampled
from squall.place import is_local

if TYPE_CHECKING:
    from squall.client import Client

CALL, RESULT_DECODE = "call", "result.decode"
SERVICE = "sdk"
FLUSH_EVERY_S = 0.5
FLUSH_AT_EXIT_S = 1.0
IDLE_ROUNDS = 10
"""Rounds without a row after which the thread ends."""
QUEUE_BATCHES = 10_000
POST_BATCHES = 500


class CallSpan(NamedTuple):
    """The span `call`: the caller's line of code."""

    trace_id: str
    span_id: str
    parent_span_id: str
    start_ns: int
    sampled: bool = True
    """Whether anybody in the trace records spans."""

    @property
    def traceparent(self) -> str:
        """The W3C header that makes everything else its child."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def begin(ratio: float = 1.0) -> CallSpan:
    """A new span, child of the user's own current one if there is any. A trace that begins here is recorded if it is
    among `ratio` of all; any other if it is recorded by whoever began it."""
    trace_id, parent, sampled = _parent()
    random = os.urandom(24).hex()
    if not trace_id:
        trace_id = random[:32]
        sampled = in_sample(trace_id, ratio)
    return CallSpan(trace_id, random[32:], parent, time.time_ns(), sampled)


def _parent() -> tuple[str, str, bool]:
    """Trace id, span id and whether it is recorded: of the user's current span, or in a container of the attempt."""
    # Only if user code imported it: importing OpenTelemetry here would cost every program 100 ms.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}", bool(context.trace_flags & 1)
    # The runner sets it while it runs one input at a time.
    header = "" if is_local() else os.environ.get("TRACEPARENT", "")
    parts = header.split("-")
    return (parts[1], parts[2], is_sampled(header)) if len(parts) == 4 else ("", "", True)


def current_input() -> Any:
    """The input that the calling code runs for, in a container; None elsewhere."""
    context = sys.modules.get("squall_runner.context")
    return context.current() if context is not None else None


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    """What the threads have not posted yet when the program ends."""
    deadline = time.monotonic() + FLUSH_AT_EXIT_S
    for recorder in list(_recorders):
        recorder.flush(max(0.0, deadline - time.monotonic()))


class Recorder:
    """Rows of one client, posted in batches by a thread that starts with the first row."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: collections.deque[dict[str, Any]] = collections.deque(maxlen=QUEUE_BATCHES)
        self._wake = threading.Event()
        self._posting = threading.Lock()
        self._thread: Optional[threading.Thread] = None

    def call_ended(self, span: CallSpan, call: str, function: str, decode_ns: tuple[int, int], error: str) -> None:
        """Record a call that ended now, if it is sampled."""
        if not span.sampled:
            return
        attributes: dict[str, Any] = {"span_id": span.span_id, "function": function}
        if span.parent_span_id:
            attributes["parent_span_id"] = span.parent_span_id
        if error:
            attributes["error"] = error
        rows: list[list[Any]] = [[CALL, "", SERVICE, span.start_ns, time.time_ns() - span.start_ns, attributes]]
        if decode_ns[1]:
            rows.append([RESULT_DECODE, "", SERVICE, decode_ns[0], decode_ns[1] - decode_ns[0], {}])
        self._queue.append(
            {
                "trace_id": span.trace_id,
                "parent_id": span.span_id,
                "call": call,
                "index": 0,
                "attempt": "",
                "rows": rows,
            }
        )
        if self._thread is None or not self._thread.is_alive():
            self._start()
        elif len(self._queue) > POST_BATCHES:
            self._wake.set()

    def _start(self) -> None:
        _recorders.add(self)
        self._thread = threading.Thread(target=self._run, name="squall-spans", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        idle_rounds = 0
        while idle_rounds < IDLE_ROUNDS:
            self._wake.wait(FLUSH_EVERY_S)
            self._wake.clear()
            idle_rounds = 0 if self._queue else idle_rounds + 1
            self.flush(timeout_s=10.0)
        self._thread = None
        if self._queue:  # a row came while this thread ended
            self._start()

    def flush(self, timeout_s: float = FLUSH_AT_EXIT_S) -> None:
        """Post what is queued. What cannot be posted is lost: a trace is never worth a delay."""
        deadline = time.monotonic() + timeout_s
        if not self._posting.acquire(timeout=timeout_s):
            return
        try:
            while self._queue and time.monotonic() < deadline:
                batches = [self._queue.popleft() for _ in range(min(POST_BATCHES, len(self._queue)))]
                self._client.once("POST", Route.SPANS, {"batches": batches}, max(0.05, deadline - time.monotonic()))
        except (SquallError, OSError):
            self._queue.clear()
        finally:
            self._posting.release()
