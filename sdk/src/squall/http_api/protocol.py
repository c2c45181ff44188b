"""What requests and answers of calls are made of: headers, frames, encoded options and parameters, blob references."""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, Optional

from squall.errors import InvalidError
from squall.spec import Kind, Options, from_wire, to_wire
from squall_runner import frames

__all__ = ["frames"]  # and everything below: the SDK and the gateway take the frame format from here


FRAMES_CONTENT_TYPE = "application/vnd.squall.frames"
MAX_HEADER_PARAMETERS_BYTES = 16 * 1024
"""Largest set of class parameters (encoded)."""
MAX_HEADER_OPTIONS_BYTES = 16 * 1024
"""Largest set of options (encoded); `env` is what can be large."""
MAX_IDEMPOTENCY_KEY_CHARS = 255


class Header:
    """Names of request headers."""

    CALL = "Squall-Call"
    """Call id, made by the caller: the same POST again cannot make a second call."""
    FUNCTION = "Squall-Function"
    """`<app id>/<function name>`; the version is the app's present one unless `Squall-Function-Id` pins it."""
    FUNCTION_ID = "Squall-Function-Id"
    METHOD = "Squall-Method"
    PARAMETERS = "Squall-Parameters"
    """Class parameters, see `encode_parameters`."""
    OPTIONS = "Squall-Options"
    """What of the declaration is different for this call, see `encode_options`: it runs in a pool of its own."""
    KIND = "Squall-Kind"
    ENCODING = "Squall-Encoding"
    BLOB = "Squall-Blob"
    """`<sha256>:<bytes>` of a payload that was uploaded before, or that is the body."""
    PARENT = "Squall-Parent"
    """Call id of the call that makes this one."""
    SENT = "Squall-Sent-Ns"
    """Caller's wall clock when encoding of the arguments began and ended: `<start ns>:<end ns>`, for the trace."""
    IDEMPOTENCY_KEY = "Idempotency-Key"
    """The caller's own name of the call: for 24 h the same key is the same call, whatever `Squall-Call` says."""
    WEBHOOK = "Squall-Webhook"
    """URL that is told when the call has ended, in place of its function's."""
    TRACEPARENT = "traceparent"
    WORKSPACE = "Squall-Workspace"
    """Of agents and builders, which serve all workspaces: whose blob is meant. Nobody else's counts."""
    CLIENT_VERSION = "Squall-Client-Version"
    """Release of the client; a server that cannot serve it answers with a VersionError."""


OPTION_NAMES = frozenset(each.name for each in dataclass_fields(Options))


def encode_options(options: Options) -> str:
    """Options as a header value, the same for equal options; empty for none."""
    given = {name: value for name, value in to_wire(options).items() if value is not None}
    return base64.urlsafe_b64encode(_canonical(given).encode()).decode() if given else ""


def decode_options(header: str) -> Options:
    """The inverse of `encode_options`. Raises `InvalidError`, also for an option that this release does not have."""
    try:
        given = json.loads(base64.urlsafe_b64decode(header.encode()))
        unknown = sorted(set(given) - OPTION_NAMES)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"options cannot be read: {error}") from error
    if unknown:
        raise InvalidError(f"this server does not know the option {unknown[0]!r}", fix="Update the server.")
    return from_wire(Options, given)


class FrameKind(enum.IntEnum):
    """Kinds of frames on HTTP streams (kinds of the runner's socket are its own)."""

    INPUT = 1
    """meta: index, blob (optional); payload: arguments."""
    RESULT = 2
    """meta: see `ResultMeta`; payload: the value, or the pickled exception."""
    ITEM = 3
    """meta: attempt, seq, encoding, blob (optional); payload: one yielded value."""
    RESTARTED = 4
    """meta: attempt. A generator runs again from its start; items of the earlier attempt are void."""
    KEEPALIVE = 5
    """Nothing happened for a while; meta may carry `waiting`: why."""
    ERROR = 6
    """meta: the wire form of an error that ended the stream."""
    INPUTS = 7
    """Consecutive inputs in one frame. meta: first (index), sizes (bytes of each), blobs (optional: reference by place
    in this frame); payload: their arguments, one after the other."""
    ENTRY = 9
    """Of dicts and queues. meta of an operation: op (get, put, pop), key (base64), blob, absent, request; payload: the
    value. Of an answer: found, put, blob, size (of the key, before the value), next, at.

    In `Route.ENTRIES` meta also has object, and op may be count (of a dict), enqueue (partition, ttl), take (partition)
    and length (partition, total). Of an answer: count, stored, taken; or error (its wire form), or again: it took too
    long to keep the others waiting, and is to be sent alone, as the same request."""
    SPAWNED = 8
    """Spawned calls in one frame. meta: calls (values of the headers `Squall-Call`, `traceparent` and `Squall-Sent-Ns`
    of each), sizes (bytes of each); payload: their arguments, one after the other."""


def blob_ref(sha256: str, size: int) -> str:
    """Value of the blob header and of `blob` in frame metadata."""
    return f"{sha256}:{size}"


def parse_blob_ref(ref: str) -> tuple[str, int]:
    """The digest and size of a blob reference."""
    sha256, _, size = ref.partition(":")
    return sha256, int(size)


def encode_parameters(values: Mapping[str, Any]) -> str:
    """Class parameters as a header value, the same for equal values; bytes are tagged base64."""
    tagged = {k: {"b64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in values.items()}
    return base64.urlsafe_b64encode(_canonical(tagged).encode()).decode()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def decode_parameters(header: str) -> dict[str, Any]:
    """The inverse of `encode_parameters`."""
    tagged = json.loads(base64.urlsafe_b64decode(header.encode()))
    return {k: base64.b64decode(v["b64"]) if isinstance(v, dict) else v for k, v in tagged.items()}


@dataclass(frozen=True)
class ResultMeta:
    """Metadata of a RESULT frame: how an input ended."""

    call: str
    index: int
    outcome: str
    """A value of `squall.spec.Outcome`."""
    encoding: str = "pickle"
    blob: Optional[str] = None
    """Reference of the payload when it is in the blob store. The frame may bring its bytes all the same, to spare a
    request; they count only if they have that hash."""
    attempt: str = ""
    error: Optional[dict[str, Any]] = None
    """For every outcome but succeeded: {kind: "user" | a code of the catalogue, type, module, message, traceback, fix,
    data}.
    The frame's payload is then the pickled exception, or empty."""
    items: Optional[int] = None
    """How many items a generator yielded."""
    cursor: Optional[int] = None
    """Position in a stream of results; resume after it."""
    started_at: float = 0.0
    ended_at: float = 0.0
    node: str = ""
    container: str = ""


@dataclass(frozen=True)
class ServerInfo:
    """GET /v1/info: what a client must know before it makes calls."""

    version: str
    api_version: int
    region: str
    shards: int
    workspace: str
    environment: str
    embedded: bool = False
    durability: str = "fsync always"
    """What an acknowledged call survives; anything else than "fsync always" was chosen by whoever started the bus."""
    blobs_with_calls: bool = False
    """Whether POST /v1/calls stores its body under the hash in `Squall-Blob`, so that nothing is uploaded before."""
    spawns_together: bool = False
    """Whether there is POST /v1/spawns."""
    entries_together: bool = False
    """Whether there is POST /v1/entries."""
    webhooks: bool = False
    """Whether ends of calls are told to webhooks."""
    trace_ratio: float = 1.0
    """Share of the traces that are recorded, of those that begin in this client."""


def durable(kind: Kind) -> bool:
    """Whether a call goes on when its caller is gone."""
    return kind is Kind.SPAWN
