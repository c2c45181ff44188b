"""Bulk enqueue: many inputs of one spawned call, sent and forgotten. Owns how they go up in chunks.

The caller's thread takes items from the user's iterables and encodes them; sender threads post whole chunks, a few at
the same time, so that one is encoded while another one is being stored. Nothing is read back: the call goes on alone.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from squall import blocking, invoke, output, payload, tracing
from squall.errors import InvalidError, ResourceExhaustedError
from squall.http_api.protocol import FRAMES_CONTENT_TYPE, FrameKind, frames
from squall.http_api.routes import Route
from squall.ids import new_call_id
from squall.spec import CHUNK_INPUTS, Kind

if TYPE_CHECKING:
    from squall.function import Function

CHUNK_BYTES = 4 * 1024 * 1024
SENDERS = 3
"""Requests at the same time: more gain nothing, the journal takes one batch after the other."""
PARALLEL_UPLOADS = 8
MAX_PAUSE_S = 5.0


class Chunk(NamedTuple):
    """Consecutive inputs that go up together."""

    first: int
    inputs: list[payload.Payload]


class BulkSpawn:
    """One call that gets its inputs. `add` and `finish` belong to the caller's thread."""

    def __init__(self, function: Function, kwargs: Mapping[str, Any]) -> None:
        origin = function._origin
        if origin.is_generator():
            raise InvalidError(
                f"{origin.label} is a generator: .spawn_map() cannot keep its items", fix="Use `.remote_gen()`."
            )
        self.target = origin.target()
        info = self.target.client.info()
        self.call = new_call_id(info.shards)
        self._kwargs = kwargs
        self._span = tracing.begin(info.trace_ratio)
        self._headers = invoke.headers(self.target, Kind.SPAWN, self._span)
        self._headers["Content-Type"] = FRAMES_CONTENT_TYPE
        self._chunk: list[payload.Payload] = []
        self._size = 0
        self.count = 0
        """Inputs so far."""
        self._ready: queue.Queue[Optional[Chunk]] = queue.Queue(1)
        self._senders: list[threading.Thread] = []
        self._abort = blocking.Abort()
        self._failure: Optional[BaseException] = None

    def add(self, args: Sequence[Any]) -> None:
        """Encode one input; it goes up with others. Raises what went wrong with earlier ones."""
        encoded = invoke.encode(self.target, args, self._kwargs)
        self._chunk.append(encoded)
        self.count += 1
        # Large payloads are in the blob store (or a file) until then; each counts as much as it keeps open.
        self._size += encoded.size if encoded.inline is not None else CHUNK_BYTES // PARALLEL_UPLOADS
        if len(self._chunk) >= CHUNK_INPUTS or self._size >= CHUNK_BYTES:
            self._hand_over()

    def add_all(self, some: Iterable[Sequence[Any]]) -> None:
        """Add several."""
        for args in some:
            self.add(args)

    def finish(self) -> str:
        """Send the rest and wait until everything is accepted; the call's id."""
        if self._chunk:
            self._hand_over()
        self._end()
        self._check()
        self.target.recorder.call_ended(self._span, self.call, self.target.label, (0, 0), "")
        return self.call

    def give_up(self, error: BaseException) -> None:
        """The caller's iterable failed, or an input could not be sent. What was accepted stays accepted."""
        self._abort.set()
        self._end()
        for encoded in self._chunk:
            encoded.close()
        told = f"{type(error).__name__}: {error}"
        self.target.recorder.call_ended(self._span, self.call, self.target.label, (0, 0), told)

    # --- senders ---

    def _hand_over(self) -> None:
        chunk, self._chunk, self._size = Chunk(self.count - len(self._chunk), self._chunk), [], 0
        if len(self._senders) < SENDERS:
            work = functools.partial(blocking.under, self._abort, self._send_all)
            sender = threading.Thread(target=work, name="squall-spawn-send", daemon=True)
            self._senders.append(sender)
            sender.start()
        self._put(chunk)
        self._check()

    def _put(self, chunk: Optional[Chunk]) -> None:
        """Wait for a sender; senders that failed go on taking, so this ends."""
        self._ready.put(chunk)

    def _end(self) -> None:
        for _ in self._senders:
            self._put(None)
        for sender in self._senders:
            sender.join()
        self._senders.clear()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _send_all(self) -> None:
        while True:
            chunk = self._ready.get()
            if chunk is None:
                return
            try:
                if self._failure is None:
                    self._abort.check()
                    self._send(chunk)
            except BaseException as error:  # noqa: BLE001 - whatever it was: `finish` must not report these inputs as accepted
                if self._failure is None:
                    self._failure = error
            finally:
                for encoded in chunk.inputs:
                    encoded.close()

    def _send(self, chunk: Chunk) -> None:
        client, pause = self.target.client, 0.1
        path, body = Route.CALL_INPUTS.format(call=self.call), self._encode(chunk)
        while True:
            try:
                client.request("POST", path, self._headers, body)
                return
            except ResourceExhaustedError as error:
                # The limit is on what is queued; it falls while the function's inputs are worked off.
                output.current().waiting(self.call, error.message)
                blocking.sleep(pause)
                pause = min(MAX_PAUSE_S, pause * 2)

    def _encode(self, chunk: Chunk) -> bytes:
        """One INPUTS frame."""
        inline = [encoded.inline for encoded in chunk.inputs]
        meta: dict[str, Any] = {"first": chunk.first, "sizes": [len(data or b"") for data in inline]}
        large = [place for place, data in enumerate(inline) if data is None]
        if large:
            upload, bodies = self.target.client.upload, [chunk.inputs[place] for place in large]
            works = [functools.partial(upload, encoded.sha256, encoded.body) for encoded in bodies]
            references = blocking.gather(works, PARALLEL_UPLOADS)
            meta["blobs"] = {str(place): reference for place, reference in zip(large, references)}
        return frames.encode(FrameKind.INPUTS, meta, b"".join([data for data in inline if data]))
