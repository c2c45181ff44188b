"""The frame: one message on a byte stream, with JSON metadata and opaque payload bytes.

Used between agent and runner (unix socket), and between gateway and SDK (bodies of streaming HTTP requests
and answers). Owns the byte format and nothing else; does no I/O except in the two blocking helpers at the
end.

Layout, network byte order: ``kind`` (1 byte), ``len(meta)`` (4 bytes), ``len(payload)`` (8 bytes), meta as
UTF-8 JSON, payload. The two frames that every input has are `TERSE`: their meta are texts with zero bytes
between them, which costs a third of JSON. A frame never exceeds `MAX_FRAME_BYTES`: larger payloads travel as
files or blobs and the frame names them.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional, Union

HEADER = struct.Struct("!BIQ")
# Payloads above the inline limit (64 KiB) go through files or blobs; 8 MiB leaves room for batches of inline
# ones.
MAX_FRAME_BYTES = 8 * 1024 * 1024


class ToRunner:
    """Kinds of frames from the agent to a runner or template."""

    SETUP = 1
    """First frame: what to load and how. `squall_runner.settings.Settings` names the fields."""
    INPUT = 130
    """Terse: call, index, attempt, method, encoding, path, traceparent; the arguments are the payload or in the
    file at `path`.
    """
    CANCEL = 3
    """{call, index}"""
    CREDIT = 4
    """{call, index, n}: so many more items may be sent."""
    STOP = 5
    """Interrupt what runs, run the exit hooks, end."""
    FORK = 6
    """To a template, with three descriptors (socket, stdout, stderr): {ticket, namespaces?}. The container's SETUP
    comes on its socket. `namespaces`: so many descriptors more, of namespaces that the fork enters. Or to a copy of a
    template that was made from an image of its memory: {ticket, here, hostname}, once, without descriptors: its one
    fork goes on with the copy's own.
    """
    RECALL = 7
    """{call, index}: give this input back if it has not begun; answered by RECALLED."""
    HEARD_ENOUGH = 8
    """{}: answers ENOUGH. What was to be given back has been asked for before; what is left then begins."""


class FromRunner:
    """Kinds of frames from a runner or template to the agent."""

    READY = 32
    """{booted_ns, phases: [[name, start_ns, duration_ns]], lines_up?, threads?, descriptors?, children?, commits?} (the
    last four: templates). `lines_up`: inputs run one by one, in the order in which they came. `commits`: a volume was
    to be committed or reloaded, which forks must do for themselves; the template waits for its end.
    """
    START_FAILED = 33
    """{type, module, message, traceback, booted_ns, phases}; the payload is the pickled exception, or empty.
    """
    LOG = 34
    """{stream, call?, index?}; the payload is UTF-8 text."""
    ITEM = 35
    """{call, index, seq, file?}: one yielded value, in the payload or in a file of the scratch folder."""
    OUTPUT = 164
    """Terse: call, index, items, file, and the times at which it was read, began, ended and was written; the
    payload is the result.
    """
    FAILED = 37
    """{call, index, items, started_ns, ended_ns, spans, kind, type, module, message, traceback}; payload:
    pickled, or empty.
    """
    ENDING = 38
    """{reason}: the runner ends by itself now."""
    FORKED = 39
    """From a template: {ticket, pid}."""
    EXITED = 40
    """From a template: {pid, status}, status as of waitpid."""
    BEGUN = 41
    """{inputs: [[call, index]...]}: the code of these begins now; before that they waited for their batch."""
    RECALLED = 42
    """{call, index, begun}: answers RECALL, unless the input's end is on its way. Of one that has not begun
    nothing will run.
    """
    COMMITTING = 44
    """{}: the code of a container has ended; what it wrote to its volumes is on its way."""
    ENOUGH = 45
    """{}: its code wants no more inputs. What has not begun is to be asked back; it ends when the rest has. Answered by
    HEARD_ENOUGH, until which nothing more begins where inputs run one by one."""
    FORK_FAILED = 43
    """From a template: {ticket, message}: there is no fork."""


class Web:
    """Kinds of frames of one web request: gateway, agent, runner.

    The gateway has parsed the request; after ASK and GRANTED the agent copies bytes. The connections end with their
    request, except those of a whole one: an ASK that names its size. After its answer they are used again."""

    ASK = 64
    """Gateway to agent, before all others: {key, pool, id, timeout_s, container?, size?, soon?}: a slot is wanted, of
    that container if it has one. OPEN and a small body may follow at once, everything else waits for GRANTED.
    `size`: so many bytes follow, and they are the whole request; `soon`: GRANTED shall not wait for the answer.
    """
    GRANTED = 65
    """Agent to gateway: {container, kept?, ago_us?}. OPEN has been passed on, and whatever follows will be. `kept`:
    after the answer this connection takes another request. `ago_us`: GRANTED has waited so long for the answer.
    """
    BUSY = 66
    """Agent to gateway: {reason, stranger}. Nothing was passed on; the connection ends. `stranger`: the key is of
    another agent, for instance of the one that was here before this one started.
    """
    OPEN = 67
    """To the runner: {type, method, id, traceparent, scope, keep?}. `type` is "http", "websocket" or "raw" (what
    follows are bytes for the port of a web server, no frames); `scope` as in ASGI, its byte strings as latin-1 texts.
    `keep`: the request is a whole one.
    """
    START = 68
    """To the gateway: {status, headers}."""
    DATA = 69
    """A piece of a body, either way."""
    END = 70
    """The body is complete, either way. A connection that ends without it was cut."""
    ACCEPT = 71
    """To the gateway: {subprotocol, headers}: the WebSocket is open."""
    TEXT = 72
    """A message of a WebSocket, either way."""
    BINARY = 73
    CLOSE = 74
    """{code, reason}, either way."""
    FAIL = 75
    """To the gateway: {reason}: no answer will come."""
    DONE = 76
    """Runner to agent, after END of a whole request: its code has ended, the connection waits for the next one."""


class WebLine:
    """How a runner offers a connection for one web request at the agent's socket."""

    HELLO = b"SQUALL-WEB "
    """Begins its first line: `SQUALL-WEB <container> <key>`. Everything else on that socket goes to the gateway."""


TERSE = {
    ToRunner.INPUT: ("call", "index", "attempt", "method", "encoding", "path", "traceparent"),
    FromRunner.OUTPUT: ("call", "index", "items", "file", "read_ns", "started_ns", "ended_ns", "written_ns"),
}
"""Names of the texts, in their order; one that a frame lacks is empty. Whoever reads numbers makes them of texts."""

# One encoder for all frames: `json.dumps` with arguments makes a new one each time, which costs more than encoding.
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class BadFrame(Exception):
    """The peer sent bytes that are not a frame: the stream is unusable from here on."""


class Frame(NamedTuple):
    """One decoded frame."""

    kind: int
    meta: dict[str, Any]
    payload: bytes = b""


def encode(kind: int, meta: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises `BadFrame` if it would exceed `MAX_FRAME_BYTES`."""
    return b"".join((*_head(kind, meta, len(payload)), payload))


def encode_head(kind: int, meta: dict[str, Any], size: int) -> bytes:
    """The same without the payload, which has `size` bytes and is sent after it."""
    return b"".join(_head(kind, meta, size))


def _head(kind: int, meta: Mapping[str, Any], size: int) -> tuple[bytes, bytes]:
    names = TERSE.get(kind)
    body = (_to_json(meta) if names is None else "\0".join([str(meta.get(name, "")) for name in names])).encode()
    if len(body) + size > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {len(body) + size} bytes exceeds {MAX_FRAME_BYTES}")
    return HEADER.pack(kind, len(body), size), body


class Decoder:
    """Turns chunks of a byte stream into frames. Bytes in, frames out; keeps what is incomplete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by `data`. Raises `BadFrame` on bytes that cannot be a frame."""
        ready: list[Frame] = []
        if self._buffer:
            self._buffer += data
            with memoryview(self._buffer) as view:
                used = _take(view, ready)
            del self._buffer[:used]
        else:  # as nearly always: whole frames, which are cut out of what came without a copy in between
            used = _take(data, ready)
            if used < len(data):
                self._buffer += memoryview(data)[used:]
        return ready

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has not fully arrived; not 0 at the end of a stream means it was cut."""
        return len(self._buffer)


def first(data: Union[bytes, bytearray]) -> Optional[tuple[Frame, int]]:
    """The frame at the beginning of `data` and how many bytes it takes; None as long as it is not complete."""
    if len(data) < HEADER.size:
        return None
    _, meta_len, payload_len = HEADER.unpack_from(data)
    end = HEADER.size + meta_len + payload_len
    if meta_len + payload_len > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame announces {meta_len + payload_len} bytes, limit {MAX_FRAME_BYTES}")
    if len(data) < end:
        return None
    ready: list[Frame] = []
    _take(bytes(data[:end]), ready)
    return ready[0], end


def _take(data: Union[bytes, memoryview], ready: list[Frame]) -> int:
    """Append the whole frames at the start of `data` to `ready`; how many bytes they are."""
    start, length = 0, len(data)
    while length - start >= HEADER.size:
        kind, meta_len, payload_len = HEADER.unpack_from(data, start)
        if meta_len + payload_len > MAX_FRAME_BYTES:
            raise BadFrame(f"a frame announces {meta_len + payload_len} bytes, limit {MAX_FRAME_BYTES}")
        body = start + HEADER.size
        payload, end = body + meta_len, body + meta_len + payload_len
        if length < end:
            break
        ready.append(Frame(kind, _meta(kind, bytes(data[body:payload])), bytes(data[payload:end])))
        start = end
    return start


def _meta(kind: int, raw: bytes) -> dict[str, Any]:
    names = TERSE.get(kind)
    try:
        if names is not None:
            texts = raw.decode().split("\0")
            if len(texts) != len(names):
                raise BadFrame(f"a frame of kind {kind} has {len(texts)} texts, not {len(names)}")
            return dict(zip(names, texts))
        meta = json.loads(raw) if raw else {}
    except ValueError as error:
        raise BadFrame(f"frame metadata is not {'UTF-8' if names else 'JSON'}: {error}") from error
    if not isinstance(meta, dict):
        raise BadFrame("frame metadata is not a JSON object")
    return meta


def send(sock: socket.socket, kind: int, meta: dict[str, Any], payload: bytes = b"") -> None:
    """Write one frame to a blocking socket."""
    sock.sendall(encode(kind, meta, payload))


def receive(sock: socket.socket, decoder: Decoder, ready: list[Frame]) -> Optional[Frame]:
    """The next frame of a blocking socket; None when the peer closed. `ready` keeps frames read ahead."""
    while not ready:
        data = sock.recv(1 << 16)
        if not data:
            return None
        ready.extend(decoder.feed(data))
    return ready.pop(0)
