"""Maps: many inputs of one call. Owns how inputs go up in chunks, and how results come back in order.

Three parties. The caller's thread takes items from the user's iterable, encodes them, and hands out results; nothing
of the user's runs anywhere else. A sender thread posts whatever is encoded: the first chunk is what is there at once,
later ones grow while a request is under way. A reader thread follows the stream of results and resumes by its cursor.
"""

from __future__ import annotations

import collections
import functools
import queue
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from squall import blocking, invoke, output, payload, tracing
from squall.client import BROKEN, Retry, query
from squall.connection import FileBody
from squall.errors import InvalidError, ResourceExhaustedError, SquallError, from_wire
from squall.http_api.protocol import FRAMES_CONTENT_TYPE, FrameKind, frames
from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall.spec import CHUNK_INPUTS, Kind

if TYPE_CHECKING:
    from squall.function import Function

MAX_OUTSTANDING = 1000
MAX_BUFFERED = 50_000
"""Results that wait for an earlier one: with one stuck input the rest of the map must not fill the memory."""
CHUNK_BYTES = 4 * 1024 * 1024
FIRST_CHUNK_INPUTS = 32
MAX_PENDING_FILES = 16
"""Encoded inputs that lie in temporary files, each an open file."""
PARALLEL_UPLOADS = 8
JOIN_S = 5.0


class Failure(NamedTuple):
    """An input that ended badly."""

    error: BaseException


class MapSession:
    """One map under way. `submit` and `take` belong to the caller's thread (or loop); `wake` is called from others."""

    def __init__(self, function: Function, kwargs: Mapping[str, Any], order: bool) -> None:
        origin = function._origin
        if origin.is_generator():
            raise InvalidError(
                f"{origin.label} is a generator: .map() cannot return its items", fix="Use `.remote_gen()`."
            )
        self.target = origin.target()
        info = self.target.client.info()
        self.call = new_call_id(info.shards)
        self.span = tracing.begin(info.trace_ratio)
        self._kwargs, self._order = kwargs, order
        self._headers = invoke.headers(self.target, Kind.MAP, self.span)
        self._headers["Content-Type"] = FRAMES_CONTENT_TYPE
        self._abort = blocking.Abort()
        self._threads: list[threading.Thread] = []
        self._outgoing: collections.deque[tuple[int, payload.Payload]] = collections.deque()
        self._changed = threading.Condition()
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._seen = bytearray()
        self._waiting: dict[int, frames.Frame] = {}
        self._next = 0
        self._files = 0
        self.submitted = 0
        self.finished = 0
        self.exhausted = False
        self.error = ""

    # --- the caller's side ---

    def submit(self, args: Sequence[Any]) -> None:
        """Encode one input and hand it to the sender."""
        encoded = invoke.encode(self.target, args, self._kwargs)
        with self._changed:
            self._files += isinstance(encoded.body, FileBody)
            self._outgoing.append((self.submitted, encoded))
            self._changed.notify_all()
        self.submitted += 1
        self._seen.append(0)
        if not self._threads:
            self._start("squall-map-send", self._send_all)

    @property
    def full(self) -> bool:
        """Whether results must come before more inputs go."""
        if self.submitted - self.finished >= MAX_OUTSTANDING or len(self._waiting) >= MAX_BUFFERED:
            return True
        return self._files >= MAX_PENDING_FILES

    @property
    def done(self) -> bool:
        """Whether every result was handed out."""
        return self.exhausted and self.finished == self.submitted and not self._waiting and self._arrived.empty()

    def take(self) -> Iterator[frames.Frame]:
        """The results that may be handed out now, without waiting."""
        while True:
            self._absorb()
            if not self._order:
                if not self._waiting:
                    return
                yield self._waiting.pop(next(iter(self._waiting)))
            elif self._next in self._waiting:
                self._next += 1
                yield self._waiting.pop(self._next - 1)
            else:
                return

    def wait(self) -> None:
        """Wait until something arrived."""
        item = self._arrived.get()
        self._receive(item)
        self._progress(False)

    @property
    def something_arrived(self) -> bool:
        """Whether `take` may have something."""
        return not self._arrived.empty() or (self._next in self._waiting if self._order else bool(self._waiting))

    def on_arrival(self) -> None:
        """Called by other threads after something arrived; for callers that cannot block in `wait`."""

    def value(self, frame: frames.Frame, return_exceptions: bool) -> Any:
        """What the user gets for a result frame; raises the input's exception unless exceptions are values."""
        try:
            return invoke.value_of(self.target.client, frame)
        except Exception as error:
            if not return_exceptions:
                raise
            return error

    def _absorb(self) -> None:
        before = self.finished
        while True:
            try:
                self._receive(self._arrived.get_nowait())
            except queue.Empty:
                break
        if self.finished != before:
            self._progress(False)

    def _receive(self, item: Any) -> None:
        if isinstance(item, Failure):
            raise item.error
        for frame in item:
            index = int(frame.meta["index"])
            if not self._seen[index]:  # a resumed stream may repeat a result
                self._seen[index] = 1
                self.finished += 1
                self._waiting[index] = frame

    def _progress(self, finished: bool) -> None:
        output.current().map_progress(self.call, self.target.label, self.finished, self.submitted, finished)

    def close(self, error: Optional[BaseException]) -> None:
        """End the map; what is not done yet is cancelled."""
        complete = self.exhausted and self.finished == self.submitted
        self._abort.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(JOIN_S)
        for _, encoded in self._outgoing:
            encoded.close()
        if self.submitted and not complete:
            invoke.cancel_quietly(self.target.client, self.call)
        told = f"{type(error).__name__}: {error}" if error is not None and not isinstance(error, GeneratorExit) else ""
        if self.submitted:
            self.target.recorder.call_ended(self.span, self.call, self.target.label, (0, 0), told)
            self._progress(True)

    # --- the other threads ---

    def _start(self, name: str, work: Any) -> None:
        def guarded() -> None:
            try:
                work()
            except (SquallError, OSError, *BROKEN) as error:
                self._put(Failure(error))

        thread = threading.Thread(target=blocking.under, args=(self._abort, guarded), name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _put(self, item: Any) -> None:
        self._arrived.put(item)
        self.on_arrival()

    def _send_all(self) -> None:
        limit, reading = FIRST_CHUNK_INPUTS, False
        while True:
            chunk = self._next_chunk(limit)
            self._send(chunk)
            limit = CHUNK_INPUTS
            if not reading:
                reading = True
                self._start("squall-map-read", self._read_all)

    def _next_chunk(self, limit: int) -> list[tuple[int, payload.Payload]]:
        with self._changed:
            self._abort.check()
            while not self._outgoing:
                self._changed.wait()
                self._abort.check()
            chunk: list[tuple[int, payload.Payload]] = []
            size = 0
            while self._outgoing and len(chunk) < limit and size < CHUNK_BYTES:
                chunk.append(self._outgoing.popleft())
                size += chunk[-1][1].size if chunk[-1][1].inline is not None else 0
            return chunk

    def _send(self, chunk: list[tuple[int, payload.Payload]]) -> None:
        client = self.target.client
        references = dict(zip(*self._upload(chunk)))
        parts = []
        for index, encoded in chunk:
            meta = {"index": index, "blob": references[index]} if index in references else {"index": index}
            parts.append(frames.encode(FrameKind.INPUT, meta, encoded.inline or b""))
        path, body, pause = Route.CALL_INPUTS.format(call=self.call), b"".join(parts), 0.1
        while True:
            try:
                client.request("POST", path, self._headers, body)
                return
            except ResourceExhaustedError as error:
                # The limit is on what is queued; it falls while this map's own inputs are worked off.
                output.current().waiting(self.call, error.message)
                blocking.sleep(pause)
                pause = min(5.0, pause * 2)

    def _upload(self, chunk: list[tuple[int, payload.Payload]]) -> tuple[list[int], list[str]]:
        """Indices of the inputs that are too large for the request, and where they are now."""
        client, large = self.target.client, [(index, encoded) for index, encoded in chunk if encoded.inline is None]
        try:
            works = [functools.partial(client.upload, encoded.sha256, encoded.body) for _, encoded in large]
            return [index for index, _ in large], blocking.gather(works, PARALLEL_UPLOADS) if works else []
        finally:
            for _, encoded in large:
                encoded.close()
            with self._changed:
                self._files -= sum(isinstance(encoded.body, FileBody) for _, encoded in large)
            if large:
                self._put([])  # whoever waits for room may go on

    def _read_all(self) -> None:
        client, cursor = self.target.client, 0
        path, retry, told = Route.CALL_RESULTS.format(call=self.call), Retry(client), ""
        while True:
            try:
                with client.stream("GET", query(path, cursor=cursor)) as stream:
                    for ready in stream.frames():
                        retry.progress()
                        results = [frame for frame in ready if frame.kind == FrameKind.RESULT]
                        if results:
                            cursor = max(cursor, *(int(frame.meta.get("cursor") or 0) for frame in results))
                            self._put(results)
                        for frame in ready:
                            if frame.kind == FrameKind.ERROR:
                                raise from_wire(frame.meta)
                            if frame.kind == FrameKind.KEEPALIVE and frame.meta.get("waiting", "") != told:
                                told = str(frame.meta.get("waiting", ""))
                                output.current().waiting(self.call, told)
                raise EOFError("the stream of results ended")
            except BROKEN as error:
                retry.wait(error)


class MapResults:
    """The results of a map: iterate once. Nothing is sent before the first step."""

    def __init__(
        self,
        function: Function,
        inputs: Iterator[tuple[Any, ...]],
        kwargs: Mapping[str, Any],
        order_outputs: bool,
        return_exceptions: bool,
    ) -> None:
        self._begun = False
        self._results = _results(lambda: MapSession(function, kwargs, order_outputs), inputs, return_exceptions)

    def __iter__(self) -> Iterator[Any]:
        self._begun = True
        return self._results

    def __next__(self) -> Any:
        return next(iter(self))

    def __del__(self) -> None:
        if not self._begun:
            warnings.warn(
                "the results of a map were dropped without being looked at: nothing was run. "
                "Iterate over them, or use for_each.",
                RuntimeWarning,
                stacklevel=2,
            )


def _results(
    begin: Callable[[], MapSession], inputs: Iterator[tuple[Any, ...]], return_exceptions: bool
) -> Iterator[Any]:
    """Take inputs and give results in turn. A plain function: a generator that held its `MapResults` would be a cycle,
    and a map that is left early would be cancelled only by the garbage collector."""
    session: Optional[MapSession] = None
    failure: Optional[BaseException] = None
    try:
        for args in inputs:
            if session is None:
                session = begin()
            session.submit(args)
            while session.full or session.something_arrived:
                if not session.something_arrived:
                    session.wait()
                for frame in session.take():
                    yield session.value(frame, return_exceptions)
        if session is None:
            return
        session.exhausted = True
        while not session.done:
            if not session.something_arrived:
                session.wait()
            for frame in session.take():
                yield session.value(frame, return_exceptions)
    except BaseException as error:
        failure = error
        raise
    finally:
        if session is not None:
            session.close(failure)
