"""The public HTTP API as data: routes, header names, frame kinds and JSON bodies. The gateway imports them too.

Payloads are opaque and travel raw; everything about them is in headers or in frame metadata. Streams of results, items
and inputs are sequences of frames (`squall_runner.frames`). An answer that is an error is JSON
`{"error": {"code", "message", "fix", "retryable", "data"}}` with the status of the error's class.
"""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, Optional

from squall.errors import InvalidError
from squall.spec import FunctionSpec, Kind, MethodSpec, Options, ParameterSpec, from_wire, to_wire
from squall_runner import frames

__all__ = ["frames"]  # and everything below: the SDK and the gateway take the frame format from here

API_VERSION = 1
FRAMES_CONTENT_TYPE = "application/vnd.squall.frames"
MAX_HEADER_PARAMETERS_BYTES = 16 * 1024
"""Largest set of class parameters (encoded)."""
MAX_HEADER_OPTIONS_BYTES = 16 * 1024
"""Largest set of options (encoded); `env` is what can be large."""
MAX_IDEMPOTENCY_KEY_CHARS = 255


class Route:
    """Paths. `{app}` is an app id, `{call}` a call id. Every request needs `Authorization: Bearer <token>`."""

    INFO = "/v1/info"
    """GET -> ServerInfo."""
    APPS = "/v1/apps"
    """POST PublishApp -> PublishedApp. GET ?environment= -> {"apps": [AppSummary]}."""
    APP_HEARTBEAT = "/v1/apps/{app}/heartbeat"
    """POST -> {"state": ...}; 404 or state "stopped" tells the client that its app is gone."""
    APP_STOP = "/v1/apps/{app}/stop"
    """POST {"reason": text} -> {"state": "stopped"}."""
    APP_STATUS = "/v1/apps/{app}/status"
    """GET -> AppStatus."""
    APP_TAGS = "/v1/apps/{app}/tags"
    """GET -> {"tags": {...}}. POST the same: they replace the ones that the app has."""
    APP_HISTORY = "/v1/apps/{app}/history"
    """GET -> {"versions": [AppVersion]}, newest first."""
    APP_ROLLBACK = "/v1/apps/{app}/rollback"
    """POST Rollback -> PublishedApp."""
    APP_LOGS = "/v1/apps/{app}/logs"
    """GET ?follow=1&cursor=&tail=&since=&until=&search= -> one LogEntry as JSON a line.
    A followed stream ends by itself when the app is
    stopped and its last container is gone; blank lines keep it alive."""
    FUNCTIONS = "/v1/functions"
    """GET ?app=<name or id>&name=&environment=[&version=][&spec=1] -> FunctionInfo; 404 when there is none."""
    FUNCTION_SCALING = "/v1/functions/scaling"
    """POST UpdateScaling -> ScalingSettings: as they are from now on, until the next deploy."""
    FUNCTION_STATS = "/v1/functions/stats"
    """POST PoolOf -> PoolStats."""
    FUNCTION_CALL = "/v1/apps/{app}/functions/{function}/call"
    """POST JSON -> JSON, for callers without an SDK; `{app}` may be a name, `{function}` may be `Class.method`."""
    FUNCTION_SPAWN = "/v1/apps/{app}/functions/{function}/spawn"
    """POST JSON -> 202 as soon as the call is stored."""
    FUNCTION_MAP = "/v1/apps/{app}/functions/{function}/map"
    """POST JSON -> a line of JSON for each result."""
    IMAGES = "/v1/images"
    """POST {"image": ImageSpec} -> JSON lines: LogEntry objects while it is built, the last line is {"image": id} or
    {"error": ...}. Building what exists answers with the last line at once.
    GET -> {"images": [ImageInfo]}, those built last first."""
    IMAGE = "/v1/images/{image}"
    """GET -> ImageInfo with its spec."""
    IMAGE_LOGS = "/v1/images/{image}/logs"
    """GET -> one LogEntry as JSON a line: what its builds printed."""
    IMAGE_NAME = "/v1/image-names/{name}"
    """GET ?environment= -> ImageInfo with its spec. PUT {"image": id}: from now on the name means that image."""
    BLOB = "/v1/blobs/{sha256}"
    """PUT (streamed, hash verified; idempotent), GET (streamed), HEAD (200 or 404)."""
    CALLS = "/v1/calls"
    """POST ?wait=<s>: see `Header`. GET -> {"calls": [CallSummary]}."""
    SPAWNS = "/v1/spawns"
    """POST a SPAWNED frame -> {"accepted": n}: calls of one target in one request, all of them accepted or an error."""
    CALL = "/v1/calls/{call}"
    """GET -> CallSummary."""
    CALL_RESULT = "/v1/calls/{call}/result"
    """GET ?index=&wait=<s> -> 200 one RESULT frame, or 202 {"call", "waiting"}."""
    CALL_OUTPUT = "/v1/calls/{call}/output"
    """GET ?index=&wait=<s> -> the result of a call in JSON, or 202."""
    CALL_OUTPUTS = "/v1/calls/{call}/outputs"
    """GET ?cursor= -> a line of JSON for each result, until all inputs have ended."""
    CALL_INPUTS = "/v1/calls/{call}/inputs"
    """POST INPUT or INPUTS frames -> {"accepted": n}."""
    CALL_RESULTS = "/v1/calls/{call}/results"
    """GET ?cursor= -> endless RESULT and KEEPALIVE frames; the client closes."""
    CALL_CANCEL = "/v1/calls/{call}/cancel"
    """POST {"terminate_containers": bool} -> {"cancelled": n}."""
    CANCELS = "/v1/cancels"
    """POST CancelMany -> one JSON object a line: {"job", "cancelled", "ended", "done"}, cumulative; `error` if it broke
    off. Another `job` under the same request: the gateway was restarted, and counts anew what was left."""
    CALL_REDRIVE = "/v1/calls/{call}/redrive"
    """POST -> Redrives: the failed inputs of a spawned call become new calls. Repeating it makes no more."""
    LETTERS = "/v1/letters"
    """GET ?app=&environment=&since=&limit= -> {"letters": [LetterInfo], "total": n}, newest first."""
    LETTERS_REDRIVE = "/v1/letters/redrive"
    """POST RedriveLetters -> Redrives."""
    CALL_TRACE = "/v1/calls/{call}/trace"
    """GET [?index=] -> Trace."""
    CONTAINERS = "/v1/containers"
    """GET -> {"containers": [ContainerInfo]}."""
    NODES = "/v1/nodes"
    """GET -> {"nodes": [NodeInfo]}."""
    TOKENS = "/v1/tokens"
    """GET -> {"tokens": [TokenInfo]}. POST MakeToken -> NewToken."""
    TOKEN = "/v1/tokens/{token}"
    """DELETE -> TokenInfo. `{token}` is its id, not the token itself."""
    NODE_DRAIN = "/v1/nodes/{node}/drain"
    """POST -> DrainedNode."""
    NODE_RESUME = "/v1/nodes/{node}/resume"
    """POST -> DrainedNode."""
    CONTAINER_STOP = "/v1/containers/{container}/stop"
    """POST StopContainer -> StoppedContainer."""
    CONTAINER_EXEC = "/v1/containers/{container}/exec"
    """POST Execute -> lines of {"stream", "text"}, then {"status"} or {"error"}."""
    SECRETS = "/v1/secrets"
    """GET ?environment= -> {"objects": [SecretInfo]}. POST PutSecret -> SecretInfo; 409 if it is there and `replace` is
    not set."""
    SECRET = "/v1/secrets/{name}"
    """GET ?environment= -> SecretInfo. POST UpdateSecret -> SecretInfo. DELETE ?environment= -> SecretInfo."""
    SECRET_VALUES = "/v1/secret-values"
    """POST SecretValues -> SecretInfo: values without a name, for `Secret.from_dict` and the like."""
    DICTS = "/v1/objects/dicts"
    """Likewise queues and volumes. GET ?environment= -> {"objects": [ObjectInfo]}. POST MakeObject -> ObjectInfo; 409
    if it is there."""
    DICT = "/v1/objects/dicts/{name}"
    """GET ?environment= -> ObjectInfo. DELETE ?environment= -> ObjectInfo: with all that is in it."""
    VOLUMES = "/v1/objects/volumes"
    VOLUME = "/v1/objects/volumes/{name}"
    OBJECT_RENAME = "/v1/objects/{kind}/{name}/rename"
    """POST RenameObject -> ObjectInfo: the same object under another name."""
    VOLUME_FILES = "/v1/volumes/{object}/files"
    """GET ?path=&recursive=1 -> {"version": VolumeVersion, "entries": [VolumeEntry]}."""
    VOLUME_FILE = "/v1/volumes/{object}/file"
    """GET ?path= -> VolumeFile: its blocks are blobs."""
    VOLUME_COMMITS = "/v1/volumes/{object}/commits"
    """POST CommitVolume -> VolumeVersion: all changes, or none."""
    QUEUES = "/v1/objects/queues"
    QUEUE = "/v1/objects/queues/{name}"
    OBJECT = "/v1/object-ids/{object}"
    """Of objects without a name. POST -> ObjectInfo: it is still in use (5 minutes). DELETE -> ObjectInfo."""
    DICT_OPS = "/v1/dicts/{object}/ops"
    """POST ENTRY frames -> ENTRY frames, one for each: operations on different keys."""
    DICT_ITEMS = "/v1/dicts/{object}/items"
    """GET ?after=&keys=1 -> ENTRY frames; the last one has `next`: where to go on, 0 = that was all."""
    DICT_COUNT = "/v1/dicts/{object}/count"
    """GET -> {"count": n}. DELETE -> {"count": 0}: all keys are removed."""
    QUEUE_ITEMS = "/v1/queues/{object}/items"
    """POST ?partition=&ttl=&wait=&request= ENTRY frames -> {"stored": n}: there was no room for the rest.
    GET ?partition=&after= -> ENTRY frames, as of dicts: items that stay where they are."""
    QUEUE_TAKEN = "/v1/queues/{object}/taken"
    """POST ?partition=&most=&wait= -> ENTRY frames: items that are this caller's now."""
    QUEUE_COUNT = "/v1/queues/{object}/count"
    """GET ?partition= or ?total=1 -> {"count": n}. DELETE ?partition= or ?total=1 -> {"count": 0}: they are removed."""
    SCHEDULES = "/v1/schedules"
    """GET ?environment= -> {"schedules": [ScheduleInfo]}."""
    SCHEDULE_PAUSE = "/v1/schedules/{schedule}/pause"
    """POST -> ScheduleInfo: no ticks until it is resumed."""
    SCHEDULE_RESUME = "/v1/schedules/{schedule}/resume"
    """POST -> ScheduleInfo: what was due meanwhile is not made up for."""
    SCHEDULE_RUN = "/v1/schedules/{schedule}/run"
    """POST -> RanSchedule: a call of its function now, whatever it is due."""
    SPANS = "/v1/spans"
    """POST {"batches": [SpanBatch fields]} -> 202."""


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
    TRACEPARENT = "traceparent"
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
    value. Of an answer: found, put, blob, size (of the key, before the value), next, at."""
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
    trace_ratio: float = 1.0
    """Share of the traces that are recorded, of those that begin in this client."""


@dataclass(frozen=True)
class PublishApp:
    """POST /v1/apps: make an ephemeral app, or deploy a version of a named one (atomically)."""

    name: str
    functions: tuple[FunctionSpec, ...]
    mode: str = "ephemeral"
    """"ephemeral", "detached" (ephemeral, outlives its client) or "deployed"."""
    environment: str = "main"
    app_id: Optional[str] = None
    """Given when more functions are added to a running ephemeral app."""
    replaces: bool = False
    """With `app_id`: functions that are not in this request are no longer part of the app."""
    tags: Mapping[str, str] = field(default_factory=dict)
    only_new: bool = False
    """Change nothing if the app is there."""
    tag: str = ""
    """Of a deployed version, for its history: a release's name, a commit."""
    strategy: str = "rolling"
    """"rolling" or "recreate": containers of earlier versions end at once, with what runs in them."""


@dataclass(frozen=True)
class WebAddress:
    """Where a web function answers."""

    function: str
    method: str
    """Of a class; "" for a function."""
    url: str
    """By the name of its own host, which needs DNS (or a system that knows `*.localhost`)."""
    path_url: str
    """Below the gateway's own address, which always works."""
    requires_proxy_auth: bool = False


@dataclass(frozen=True)
class PublishedApp:
    """Answer of POST /v1/apps."""

    app_id: str
    name: str
    version: int
    functions: Mapping[str, str]
    """Function id by function name."""
    unchanged: bool = False
    """A deploy that changed nothing made no new version."""
    web: tuple[WebAddress, ...] = ()


@dataclass(frozen=True)
class AppVersion:
    """One row of GET /v1/apps/{app}/history."""

    version: int
    deployed_at: float
    functions: tuple[str, ...]
    rolled_back_to: int = 0
    """The version whose functions it has, if it came from a rollback."""
    current: bool = False
    tag: str = ""
    """Given when it was deployed."""


@dataclass(frozen=True)
class Rollback:
    """POST /v1/apps/{app}/rollback."""

    version: Optional[int] = None
    """None = the one before the present."""


@dataclass(frozen=True)
class FunctionInfo:
    """GET /v1/functions?app=&name=&environment=: what a looked-up handle needs."""

    app_id: str
    app_name: str
    function_id: str
    name: str
    version: int
    is_class: bool = False
    methods: tuple[MethodSpec, ...] = ()
    parameters: tuple[ParameterSpec, ...] = ()
    spec: Optional[FunctionSpec] = None
    """With `?spec=1`: everything that it declares, without the values of its variables."""
    web: tuple[WebAddress, ...] = ()


@dataclass(frozen=True)
class PoolOf:
    """POST /v1/functions/stats: which pool is meant; the fields are those of a call's headers."""

    app_id: str
    function: str
    function_id: str = ""
    parameters: str = ""
    options: str = ""


@dataclass(frozen=True)
class UpdateScaling:
    """POST /v1/functions/scaling. What is left out stays as it is; without any of them it is a look."""

    pool: PoolOf
    min_containers: Optional[int] = None
    max_containers: Optional[int] = None
    """0: no limit."""
    buffer_containers: Optional[int] = None
    scaledown_window_s: Optional[float] = None


@dataclass(frozen=True)
class ScalingSettings:
    """Answer of POST /v1/functions/scaling."""

    min_containers: int
    max_containers: Optional[int]
    buffer_containers: int
    scaledown_window_s: float


@dataclass(frozen=True)
class PoolStats:
    """Answer of POST /v1/functions/stats."""

    backlog: int
    """Inputs that wait for a container."""
    num_total_runners: int
    """Containers that take inputs."""
    num_running_inputs: int
    input_headroom: int
    """Inputs that the present containers could take at once, on top of those that run."""


@dataclass(frozen=True)
class PoolStatus:
    """One pool in GET /v1/apps/{id}/status."""

    pool: str
    function: str
    parameters: Mapping[str, Any]
    backlog: int
    """Inputs waiting or leased but not running."""
    running: int
    ready: int
    starting: int
    desired: int
    reason: str = ""
    """Why the autoscaler wants that many containers."""
    waiting: str = ""
    """Why inputs wait: no room (with each node's reason), a failing start, a build."""


@dataclass(frozen=True)
class AppStatus:
    """GET /v1/apps/{id}/status."""

    app_id: str
    name: str
    state: str
    pools: tuple[PoolStatus, ...] = ()


@dataclass(frozen=True)
class AppSummary:
    """One row of GET /v1/apps."""

    app_id: str
    name: str
    environment: str
    state: str
    """"ephemeral", "detached", "deployed" or "stopped"."""
    version: int
    functions: tuple[str, ...]
    containers: int
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class CallSummary:
    """One row of GET /v1/calls, and the head of GET /v1/calls/{id}."""

    call: str
    app: str
    function: str
    kind: str
    state: str
    """"queued", "running" or a value of `Outcome`; a map is `running` until every known input ended."""
    inputs: int
    finished: int
    failed: int
    accepted_at: float
    ended_at: Optional[float] = None
    error: str = ""


@dataclass(frozen=True)
class CancelMany:
    """POST /v1/cancels: cancel what of a call or of an app is queued or runs."""

    request: str
    """A name of the caller's making: the same one again joins the cancel that runs, or tells its outcome."""
    call: str = ""
    app: str = ""
    """Name or id."""
    environment: str = "main"
    function: str = ""
    """With `app`: only of this function."""
    terminate_containers: bool = False


@dataclass(frozen=True)
class LetterInfo:
    """One row of GET /v1/letters: a spawned input that ended badly and can be run again."""

    call: str
    index: int
    app: str
    function: str
    version: int
    """Of the function, when it ran; 0 if that is no longer known."""
    outcome: str
    """failed, timed_out or expired."""
    error: str
    accepted_at: float
    failed_at: float
    redriven_to: str = ""
    """The call that repeats it."""


@dataclass(frozen=True)
class RedriveLetters:
    """POST /v1/letters/redrive: run dead letters again that were not yet, oldest first."""

    app: str = ""
    """Name or id; empty for every app of the workspace."""
    environment: str = "main"
    since: float = 0.0
    """Unix seconds: only what failed after it."""
    limit: int = 1000
    cursor: str = ""
    """Go on after the page whose answer had it."""


@dataclass(frozen=True)
class RedrivenInput:
    """A dead letter and the call that repeats it."""

    call: str
    index: int
    into: str


@dataclass(frozen=True)
class RefusedRedrive:
    """A dead letter that could not be made a call, and why."""

    call: str
    index: int
    error: Mapping[str, Any]
    """The wire form of an error."""


@dataclass(frozen=True)
class Redrives:
    """Answer to a redrive."""

    redriven: tuple[RedrivenInput, ...] = ()
    refused: tuple[RefusedRedrive, ...] = ()
    cursor: str = ""
    """There may be more after it; empty = that was all."""


@dataclass(frozen=True)
class LogEntry:
    """One JSON line of GET /v1/apps/{id}/logs and of POST /v1/images answers. `text` keeps carriage returns."""

    at: float
    stream: str
    """"stdout", "stderr" or "system"."""
    text: str
    app: str = ""
    function: str = ""
    container: str = ""
    call: str = ""
    index: int = -1
    cursor: str = ""


@dataclass(frozen=True)
class GpuInfo:
    """One device of a machine or of a container."""

    uuid: str
    type: str = ""
    name: str = ""
    memory_mib: int = 0
    memory_used_mib: int = 0
    simulated: bool = False
    """It exists in name only."""
    mig: bool = False
    processes: int = 0
    used: bool = False
    """A container has it."""
    trouble: str = ""
    """Why no container gets it."""


@dataclass(frozen=True)
class ContainerInfo:
    """One row of GET /v1/containers."""

    container: str
    app: str
    function: str
    node: str
    state: str
    running: int
    started_at: float
    how: str = ""
    """"fork" of a template or "fresh", and why."""
    gpus: tuple[GpuInfo, ...] = ()


@dataclass(frozen=True)
class MakeToken:
    """POST /v1/tokens."""

    name: str
    """For people: whose or what for."""
    scope: str = "workspace"
    """"workspace" (everything), "caller" (calls functions, reads results) or "proxy" (web functions that want one; the
    token is then `<key>.<secret>`)."""
    lifetime_s: Optional[float] = None
    """None = until it is revoked."""


@dataclass(frozen=True)
class TokenInfo:
    """One row of GET /v1/tokens. The token itself is stored nowhere."""

    id: str
    name: str
    scope: str
    created_at: float
    expires_at: float = 0.0
    """0 = never."""


@dataclass(frozen=True)
class NewToken:
    """Answer of POST /v1/tokens; the only time that the token is told."""

    token: str
    id: str
    name: str
    scope: str
    expires_at: float = 0.0


@dataclass(frozen=True)
class MakeObject:
    """POST /v1/objects/{kind}."""

    name: str = ""
    environment: str = "main"
    ephemeral: bool = False
    """Without a name: it is gone five minutes after its last renewal."""


@dataclass(frozen=True)
class RenameObject:
    """POST /v1/objects/{kind}/{name}/rename."""

    name: str
    """The new one."""
    environment: str = "main"


BLOCK_BYTES = 8 * 1024 * 1024
"""Of a file in a volume, but for the last block."""


@dataclass(frozen=True)
class VolumeFile:
    """A file of a volume."""

    path: str
    size: int
    mtime: float
    mode: int
    blocks: tuple[str, ...]
    """sha256 of each, in order."""


@dataclass(frozen=True)
class VolumeChange:
    """One change of a commit."""

    what: str
    """"put", "remove" or "copy"."""
    path: str
    """What is put or removed; of a copy where it goes."""
    file: Optional[VolumeFile] = None
    """Of a put; its blocks were uploaded before."""
    force: bool = False
    """Of a put: replace what is there."""
    sources: tuple[str, ...] = ()
    """Of a copy."""
    recursive: bool = False


@dataclass(frozen=True)
class CommitVolume:
    """POST /v1/volumes/{object}/commits."""

    changes: tuple[VolumeChange, ...]
    expect: Optional[int] = None
    """Refuse (409) if the volume is at another version."""
    request: str = ""
    """A name of the caller's making: repeating it changes nothing."""


@dataclass(frozen=True)
class VolumeVersion:
    """A version of a volume."""

    version: int
    files: int
    size: int
    committed_at: float


@dataclass(frozen=True)
class VolumeEntry:
    """A file or folder of a volume."""

    path: str
    type: str
    """"file" or "directory"."""
    mtime: float
    size: int


@dataclass(frozen=True)
class ObjectInfo:
    """A dict, a queue or a volume."""

    id: str
    kind: str
    name: str
    environment: str
    created_at: float


@dataclass(frozen=True)
class ScheduleInfo:
    """One row of GET /v1/schedules."""

    id: str
    app: str
    app_id: str
    function: str
    environment: str
    when: str
    """`0 6 * * * (Europe/Berlin)`, or `every 1 hour 30 minutes`."""
    next_tick: float
    """Unix seconds; 0 = there is none."""
    paused: bool
    called: int
    """Ticks that were called since it was declared so."""
    missed: int
    recent: tuple[dict[str, Any], ...] = ()
    """{tick, decided_at, call} of the last ones, newest first; without a call it was missed."""


@dataclass(frozen=True)
class RanSchedule:
    """Answer of POST /v1/schedules/{schedule}/run."""

    schedule: str
    call: str


@dataclass(frozen=True)
class PutSecret:
    """POST /v1/secrets."""

    name: str
    values: Mapping[str, str]
    environment: str = "main"
    replace: bool = False
    """Give it these values if it is there, and no others."""


@dataclass(frozen=True)
class UpdateSecret:
    """POST /v1/secrets/{name}: these values are set, None removes one; the others stay."""

    values: Mapping[str, Optional[str]]
    environment: str = "main"


@dataclass(frozen=True)
class SecretValues:
    """POST /v1/secret-values. Equal values have one id."""

    values: Mapping[str, str]
    environment: str = "main"


@dataclass(frozen=True)
class SecretInfo:
    """What is told about a secret: never a value."""

    id: str
    name: str
    environment: str
    keys: tuple[str, ...]
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class StopContainer:
    """POST /v1/containers/{container}/stop."""

    graceful: bool = False
    """Let what runs end first."""


@dataclass(frozen=True)
class StoppedContainer:
    """Its answer: the node has been told, and has said that it does it."""

    container: str
    node: str


@dataclass(frozen=True)
class Execute:
    """POST /v1/containers/{container}/exec."""

    command: tuple[str, ...]
    timeout_s: float = 60.0


@dataclass(frozen=True)
class DrainedNode:
    """Answer to the drain or the resume of a node."""

    node: str
    containers: int
    """That it had at that moment."""
    draining: bool


@dataclass(frozen=True)
class NodeInfo:
    """One row of GET /v1/nodes."""

    node: str
    region: str
    backends: tuple[str, ...]
    cpu: float
    cpu_used: float
    memory_mib: int
    memory_used_mib: int
    gpus: tuple[str, ...]
    """Types, one for each device."""
    containers: int
    draining: bool
    seen_at: float
    devices: tuple[GpuInfo, ...] = ()
    gpu_note: str = ""
    """Where the devices are read, or why there are none."""
    preemptible: bool = False
    leaving_at: float = 0.0
    """When it is taken away, if that is known."""
    backend_notes: tuple[str, ...] = ()
    """What an operator should know of its backend."""


@dataclass(frozen=True)
class ImageInfo:
    """One row of GET /v1/images."""

    image: str
    state: str
    """"building", "ready" or "failed"."""
    updated_at: float
    python: str = ""
    packages: tuple[str, ...] = ()
    """`name==version`."""
    layers: tuple[str, ...] = ()
    build_ms: float = 0.0
    error: str = ""
    names: tuple[str, ...] = ()
    """What it was published as, `name:tag`, in the environment that was asked for."""
    spec: Optional[Mapping[str, Any]] = None
    """The recipe; only where one image was asked for."""


@dataclass(frozen=True)
class SpanInfo:
    """One span of GET /v1/calls/{id}/trace. Times are nanoseconds since 1970."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhaseInfo:
    """One phase on a call's critical path; phases do not overlap, `other` is what no phase covers."""

    name: str
    start_ns: int
    duration_ns: int


@dataclass(frozen=True)
class Trace:
    """GET /v1/calls/{id}/trace."""

    call: str
    trace_id: str
    spans: tuple[SpanInfo, ...]
    phases: tuple[PhaseInfo, ...]
    wall_ns: int


def durable(kind: Kind) -> bool:
    """Whether a call goes on when its caller is gone."""
    return kind is Kind.SPAWN
