"""Roles: who may say and hear what on the bus. One NATS user for each role, with the least subjects that it needs.

Owns the table; the server's configuration is generated from it (`users.py`), and tests try it in both directions: what
the services do works, what stands in no row is refused. Why it is so: docs/decisions/0009-one-bus-user-per-role.md.

Rules behind the rows:
- Deny by default: nothing is allowed that is not written here.
- Streams and buckets are made by `topology` only. The scheduler may make again what a server can lose (queues, buckets
  in memory), and restart a queue's sourcing. Nobody but `admin` can delete a stream.
- Consumers of readers have random names: whoever does not know the name can neither read on nor delete them, as long as
  nobody but `admin` may list the consumers of those streams.
- An agent is the least trusted of all: it is on a machine that runs user code. It has a user for each node, sees its
  own inbox, and writes only what belongs to its node where the subject tells that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from squall_contracts import subjects, topology

GATEWAY, SCHEDULER, AUTOSCALER, BUILDER, AGENT = "gateway", "scheduler", "autoscaler", "builder", "agent"
TOPOLOGY = "topology"
"""Makes the streams and buckets, and the first tokens: whoever starts or operates the platform."""
ADMIN = "admin"
"""Everything: for people who look into or repair a bus. No service has it."""
SERVICES = (GATEWAY, SCHEDULER, AUTOSCALER, BUILDER)
"""Roles with one user each, however many instances run; agents have one for each node."""
PUBLIC_INBOX = "i"
"""Token of the inboxes that a role tells to others, as against those of its own requests and pulls."""

BUILDERS_NODE = "-builders"
"""Stands for the node in the keys of tokens that builders give themselves; no node is called so."""

_API = "$JS.API"


@dataclass(frozen=True)
class Permissions:
    """What one user may do."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def inbox_prefix(role: str, node: str = "") -> str:
    """Where replies to this role arrive; an agent has its own, so that nobody reads another's replies."""
    return f"_INBOX_{role}.{node}" if node else f"_INBOX_{role}"


def user_name(role: str, node: str = "") -> str:
    """The NATS user of a role, or of one node's agent."""
    return f"{role}-{node}" if node else role


def container_token_key(node: str, digest: str) -> str:
    """Key in the bucket `tokens` of a token that this node's agent gave to containers."""
    return f"containers.{node}.{digest}"


def permissions(role: str, region: str, shards: int, node: str = "") -> Permissions:
    """The row of a role; `node` for agents."""
    build = _ROWS[role]
    row = build(_Names(region, shards, node))
    own = f"{inbox_prefix(role, node)}.>"
    if role == ADMIN:
        return row
    always = (f"{_API}.INFO", f"{_API}.STREAM.NAMES")
    return Permissions(tuple(sorted({*always, *row.publish})), (own, *row.subscribe))


# ---------------------------------------------------------------------- what a right consists of


@dataclass(frozen=True)
class _Names:
    """The names of one region, as a row needs them."""

    region: str
    shards: int
    node: str

    def _each(self, name: object) -> list[str]:
        return [name(self.region, shard) for shard in range(self.shards)]  # type: ignore[operator]

    @property
    def journal(self) -> list[str]:
        return self._each(subjects.journal_stream)

    @property
    def work(self) -> list[str]:
        return self._each(subjects.work_stream)

    @property
    def results(self) -> list[str]:
        return self._each(subjects.results_stream)

    @property
    def attempts(self) -> list[str]:
        return self._each(subjects.attempts_stream)

    @property
    def events(self) -> list[str]:
        return self._each(subjects.events_stream)

    @property
    def logs(self) -> list[str]:
        return self._each(subjects.logs_stream)

    def to(self, *kinds: str) -> list[str]:
        """Publishing, or listening to, everything of these kinds of subject in the region."""
        return [f"{kind}.{self.region}.>" for kind in kinds]


def _get(*streams: str) -> list[str]:
    """Single messages and ranges, by direct get."""
    return [subject for stream in streams for subject in (f"{_API}.DIRECT.GET.{stream}", _get_last(stream))]


def _get_last(stream: str) -> str:
    """The last message of one subject, which is the only form in which the subject stands in the request's."""
    return f"{_API}.DIRECT.GET.{stream}.>"


def _owner(*streams: str) -> list[str]:
    """Asking the leader whose record is there, after a publish whose outcome is unknown or a lost compare-and-set."""
    return [f"{_API}.STREAM.MSG.GET.{stream}" for stream in streams]


def _count(*streams: str) -> list[str]:
    return [f"{_API}.STREAM.INFO.{stream}" for stream in streams]


def _purge(*streams: str) -> list[str]:
    return [f"{_API}.STREAM.PURGE.{stream}" for stream in streams]


def _follow(stream: str, wanted: str) -> list[str]:
    """An ordered reader of `wanted`: a consumer with a random name, read by pulling."""
    return [
        f"{_API}.CONSUMER.CREATE.{stream}.*.{wanted}",
        *(f"{_API}.CONSUMER.{verb}.{stream}.*" for verb in ("INFO", "DELETE", "MSG.NEXT")),
    ]


def _take(stream: str, consumer: str = "*") -> list[str]:
    """Pulling from a durable, and answering its deliveries; both forms that the server may give ack subjects."""
    return [
        f"{_API}.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        f"$JS.ACK.{stream}.{consumer}.>",
        f"$JS.ACK.*.*.{stream}.{consumer}.>",
    ]


def _look(*buckets: str) -> list[str]:
    """Single values and all values of buckets."""
    return _get(*(subjects.kv_stream(bucket) for bucket in buckets))


def _watch(bucket: str, keys: str = ">") -> list[str]:
    return _follow(subjects.kv_stream(bucket), subjects.kv_subject(bucket, keys))


def _set(bucket: str, *keys: str) -> list[str]:
    """Writing these keys, and finding out whose value is there when a compare-and-set is lost."""
    return [subjects.kv_subject(bucket, key) for key in keys or (">",)] + _owner(subjects.kv_stream(bucket))


def _answers() -> list[str]:
    """Replying to a waiting gateway: its public inboxes only, not those of its requests."""
    return [f"{inbox_prefix(GATEWAY)}.*.{PUBLIC_INBOX}.>"]


def _canaries(n: _Names) -> list[str]:
    """Writing and reading the one message in every stream that says whether it takes any."""
    layout = topology.build(n.region, n.shards)
    canaries = {spec.name: spec.canary for spec in layout.streams}
    canaries |= {subjects.kv_stream(spec.name): spec.canary for spec in layout.buckets}
    return [*canaries.values(), *(f"{_API}.DIRECT.GET.{stream}.{subject}" for stream, subject in canaries.items())]


def _lease(*names: str) -> list[str]:
    bucket = "leases"
    return [*_set(bucket, *names), *(f"{_API}.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{name}" for name in names)]


def _join(*parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(subject for part in parts for subject in part)


# ---------------------------------------------------------------------- the rows


def _gateway(n: _Names) -> Permissions:
    spans, letters = subjects.spans_stream(n.region), subjects.letters_stream(n.region)
    queues, deliveries = subjects.queues_stream(n.region), subjects.kv_stream("webhooks")
    return Permissions(
        publish=_join(
            n.to("calls", "results", "redrives", "events", "spans", "cancel", "credit", "builds", "command", "demand"),
            [subjects.prune(n.region)],
            _answers(),
            [f"logs.{n.region}.*.*.*.web"],  # of logs only the lines about web requests
            _get(*n.journal, *n.work, *n.results, *n.attempts, *n.events, *n.logs, spans, letters),
            _count(*n.journal, *n.work, *n.results, *n.events, *n.logs, spans, letters),
            _owner(*n.journal, *n.results, letters, subjects.builds_stream(n.region)),
            _purge(*n.work),
            (f"{_API}.CONSUMER.CREATE.{stream}.*.calls.{n.region}.>" for stream in n.work),
            (f"{_API}.CONSUMER.{verb}.{stream}.*" for stream in n.work for verb in ("INFO", "PAUSE")),
            *(_follow(stream, f"results.{n.region}.>") for stream in n.results),
            # Webhooks: the results of workspaces that have any, and what is to be delivered.
            *(_take(stream) for stream in n.results),
            [f"{_API}.CONSUMER.CREATE.{deliveries}.deliver.{subjects.webhook_deliveries()}"],
            _take(deliveries, "deliver"),
            _look("webhooks"),
            _watch("webhooks", "user.>"),
            _set("webhooks"),
            *(_follow(stream, f"logs.{n.region}.>") for stream in n.logs),
            # The exporter of spans is a durable of its own.
            [f"{_API}.CONSUMER.CREATE.{spans}.otlp.spans.{n.region}.>", *_take(spans, "otlp")],
            _look("apps", "specs", "tokens", "idem", "images", "nodes", "containers", "desired", "verdicts", "health"),
            *(_watch(bucket) for bucket in ("apps", "specs", "containers", "desired", "verdicts")),
            _set("apps"),
            # Names of images, who else asked for one, and when; the rest is the builder's.
            _set("images", "name.>", "user.>", "asked.>"),
            _set("specs"),
            _set("idem"),
            _set("tokens", "*"),  # not those of containers, which have longer keys
            _look("secrets", "schedules"),
            _set("secrets"),
            _set("schedules"),
            *(_look(bucket) for bucket in ("objects", "dicts", "takes", "volumes")),
            *(_set(bucket) for bucket in ("objects", "dicts", "takes", "volumes")),
            *(_purge(subjects.kv_stream(bucket)) for bucket in ("dicts", "takes")),
            # Whoever removes an item of a queue has it.
            n.to("queues"),
            *(each(queues) for each in (_get, _count, _purge)),
        ),
        subscribe=_join(n.to("done", "items", "stats", "queued")),
    )


def _scheduler(n: _Names) -> Permissions:
    remade = [*n.work, subjects.kv_stream("nodes"), subjects.kv_stream("health")]
    ticks = subjects.schedules_stream(n.region)
    return Permissions(
        publish=_join(
            # The reconciler records `expired`, with its dead letter, and puts lost inputs back. Ticks become calls.
            # Images that were lost are built again.
            n.to("results", "letters", "requeue", "calls", "sched", "builds"),
            [f"{_API}.CONSUMER.CREATE.{ticks}.ticks.fire.{n.region}.>", *_take(ticks, "ticks")],
            _purge(ticks),
            _set("specs", "pool.*"),
            _set("schedules"),
            _owner(subjects.kv_stream("apps")),
            (_get_last(subjects.kv_stream("specs")),),
            _answers(),
            _get(*n.journal, *n.work, *n.results),
            _count(*n.journal, *n.work, *n.results),
            _owner(*n.journal, *n.results, *n.work, subjects.letters_stream(n.region)),
            _purge(*n.work),
            *(_follow(stream, f"calls.{n.region}.>") for stream in n.journal),
            (f"{_API}.STREAM.CREATE.{stream}" for stream in remade),
            # It makes a queue take over the journal again that the server has left alone.
            (f"{_API}.STREAM.UPDATE.{stream}" for stream in n.work),
            # A queue whose server stays away is made again on another one.
            (f"{_API}.STREAM.DELETE.{stream}" for stream in n.work),
            (f"{_API}.CONSUMER.CREATE.{stream}.*.calls.{n.region}.>" for stream in n.work),
            (f"{_API}.CONSUMER.INFO.{stream}.*" for stream in n.work),
            (f"{_API}.CONSUMER.LIST.{stream}" for stream in n.work),
            *(_watch(bucket) for bucket in ("specs", "apps", "images", "nodes", "containers", "verdicts", "desired")),
            _watch("schedules"),
            _set("containers"),
            _set("verdicts"),
            _canaries(n),
            _set("health"),
            _lease(*(f"reconciler-{subjects.shard_token(shard)}" for shard in range(n.shards)), "schedules"),
        ),
        subscribe=_join(n.to("arrived", "done", "stats")),
    )


def _autoscaler(n: _Names) -> Permissions:
    return Permissions(
        publish=_join(
            _get(*n.work, *n.results),
            _count(*n.work),
            (f"{_API}.CONSUMER.LIST.{stream}" for stream in n.work),
            (f"{_API}.CONSUMER.{verb}.{stream}.*" for stream in n.work for verb in ("INFO", "DELETE")),
            *(_watch(bucket) for bucket in ("specs", "apps", "containers", "verdicts", "desired")),
            _set("desired"),
            _set("specs", "pool.*"),  # it removes the records of retired pools
            _lease("autoscaler"),
        ),
        subscribe=_join(n.to("arrived", "stats", "demand")),
    )


def _builder(n: _Names) -> Permissions:
    builds = subjects.builds_stream(n.region)
    return Permissions(
        publish=_join(
            [f"logs.{n.region}.*.*.build.*"],
            [f"{_API}.CONSUMER.CREATE.{builds}.builder.builds.{n.region}.>", *_take(builds, "builder")],
            [f"{_API}.DIRECT.GET.KV_images.$KV.images.*"],
            _set("images", "*"),
            # Sealed; those that build steps declare.
            _owner(subjects.kv_stream("secrets")),
            # With which it gets the volumes of build steps: no more than containers can.
            [subjects.kv_subject("tokens", container_token_key(BUILDERS_NODE, "*"))],
            n.to("spans"),
            _answers(),
        ),
        subscribe=(subjects.prune(n.region),),
    )


def _agent(n: _Names) -> Permissions:
    tokens = container_token_key(n.node, "*")
    return Permissions(
        publish=_join(
            n.to("results", "letters", "attempts", "events", "logs", "spans", "usage", "items"),
            [f"stats.{n.region}.{n.node}"],
            _answers(),
            *(_take(stream) for stream in n.work),
            (f"{_API}.CONSUMER.INFO.{stream}.*" for stream in n.work),
            # A lagging replica is not enough when an input's history decides whether it runs again.
            (_get_last(stream) for stream in (*n.results, *n.attempts, *n.events)),
            _owner(*n.results, *n.attempts, subjects.letters_stream(n.region)),
            # Where the journals end when it connects: what stands behind nobody has run before.
            _count(*n.journal),
            (_get_last(subjects.kv_stream("specs")),),
            # By which manifest the registry has an image: the builder's word, not the registry's.
            [f"{_API}.DIRECT.GET.KV_images.$KV.images.*"],
            # A claim that the scheduler has changed meanwhile is read again before it is moved on.
            (_get_last(subjects.kv_stream("containers")),),
            _watch("containers"),
            _set("containers"),
            _set("nodes", n.node),
            # Sealed; asked of the leader, so that the container after a change sees it.
            _owner(subjects.kv_stream("secrets")),
            # Its own containers' tokens, and nobody else's: no direct get of the bucket, which would show them all.
            [subjects.kv_subject("tokens", tokens), *_watch("tokens", tokens)],
        ),
        subscribe=_join(n.to("cancel", "credit"), [subjects.command(n.region, n.node)]),
    )


def _topology(n: _Names) -> Permissions:
    return Permissions(
        publish=_join(
            (f"{_API}.STREAM.{verb}.*" for verb in ("CREATE", "UPDATE", "INFO")),
            n.to("builds"),
            _set("tokens", "*"),
        ),
        subscribe=(),
    )


def _admin(_: _Names) -> Permissions:
    return Permissions(publish=(">",), subscribe=(">",))


_ROWS = {
    GATEWAY: _gateway,
    SCHEDULER: _scheduler,
    AUTOSCALER: _autoscaler,
    BUILDER: _builder,
    AGENT: _agent,
    TOPOLOGY: _topology,
    ADMIN: _admin,
}
ROLES = tuple(_ROWS)
