"""Streams and buckets as data: what exists on the bus, how long it keeps things, and on how many servers.

Owns names, retention and limits; `squall_bus` creates what stands here. The table with the reasons is
docs/explanation/bus.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from squall_contracts import subjects

MIN_SERVER_VERSION = (2, 15, 0)
# Earlier servers answer calls and silently ignore fields that squall relies on (atomic batches, schedules, prioritized
# consumers, sources into work queues).

DAY_S = 24 * 3600.0
MAX_CALL_RECORD_BYTES = 256 * 1024  # inline payload (64 KiB) + metadata, generously
MAX_QUEUE_ITEMS = 5000
"""Of one partition of a queue."""
HINTS_S = 0.25
"""How long readable history and traces are collected: at lone calls they are as many writes as calls, else."""
LEASE_S = 8.0
"""ack_wait of the pools' consumers: a dead agent's calls are back in the queue within this time."""


@dataclass(frozen=True)
class StreamSpec:
    """One stream."""

    name: str
    subjects: tuple[str, ...] = ()
    retention: str = "limits"
    storage: str = "file"
    replicas: int = 1
    max_age_s: float = 0
    max_bytes: int = -1
    max_msg_size: int = -1
    max_msgs_per_subject: int = -1
    discard: str = "old"
    discard_new_per_subject: bool = False
    allow_msg_ttl: bool = False
    allow_atomic: bool = False
    allow_schedules: bool = False
    allow_direct: bool = True
    persist_async: bool = False
    """Opts this stream out of fsync per write: only for projections and hints."""
    sources: tuple[str, ...] = ()
    subject_transform: tuple[str, str] | None = None
    """(source subject, destination subject) of what is published into the stream itself."""
    republish: tuple[str, str, bool] | None = None
    """(source subject, destination subject, headers only)."""
    duplicate_window_s: float = 10.0
    soon_s: float = 0.05
    """How long a record that nobody waits for (`publish_soon`) waits for others."""
    max_consumers: int = 1000
    canary: str = ""
    """Subject of the canary: written and read every now and then, gone by TTL. Empty = none."""


@dataclass(frozen=True)
class BucketSpec:
    """One key-value bucket."""

    name: str
    storage: str = "file"
    replicas: int = 1
    history: int = 1
    ttl_s: float = 0
    """Age at which entries vanish; 0 = never. Expiry sends no watch event: find it by polling."""
    allow_atomic: bool = False
    """Writes that arrive together go out as one."""
    duplicate_window_s: float = 0.0
    """0 = as long as a service repeats its own writes."""
    max_consumers: int = 10_000
    canary: str = ""


@dataclass(frozen=True)
class Topology:
    """Everything on one region's bus."""

    region: str
    shards: int
    streams: tuple[StreamSpec, ...]
    buckets: tuple[BucketSpec, ...]


def build(region: str = "local", shards: int = 4, replicas: int = 1) -> Topology:
    """The topology of a region; `replicas` applies to what must survive a server, R1 stays R1."""
    streams: list[StreamSpec] = []
    for shard in range(shards):
        streams += _call_streams(region, shard, replicas)
    streams += _region_streams(region, replicas)
    return Topology(
        region=region,
        shards=shards,
        streams=tuple(replace(s, canary=subjects.canary(region, s.name), allow_msg_ttl=True) for s in streams),
        buckets=tuple(
            replace(b, canary=subjects.canary(region, subjects.kv_stream(b.name))) for b in _buckets(replicas)
        ),
    )


def _call_streams(region: str, shard: int, replicas: int) -> list[StreamSpec]:
    ss = subjects.shard_token(shard)
    return [
        StreamSpec(
            name=subjects.journal_stream(region, shard),
            subjects=(f"calls.{region}.{ss}.>",),
            replicas=replicas,
            allow_msg_ttl=True,
            allow_atomic=True,
            max_msg_size=MAX_CALL_RECORD_BYTES,
            republish=(f"calls.{region}.{ss}.>", f"{subjects.ARRIVED}.{region}.{ss}.>", True),
            max_consumers=100,
            max_msgs_per_subject=1,
            discard="new",
            discard_new_per_subject=True,
        ),
        StreamSpec(
            name=subjects.work_stream(region, shard),
            # Only the reconciler publishes here: what lies under another subject than the journal's cannot be taken for
            # a newly accepted call, and wakes no pool.
            subjects=(f"requeue.{region}.{ss}.>",),
            subject_transform=(f"requeue.{region}.{ss}.>", f"calls.{region}.{ss}.>"),
            retention="workqueue",
            sources=(subjects.journal_stream(region, shard),),
            allow_msg_ttl=True,
            persist_async=True,
            max_consumers=50_000,
        ),
        StreamSpec(
            name=subjects.results_stream(region, shard),
            subjects=(f"results.{region}.{ss}.>",),
            replicas=replicas,
            allow_msg_ttl=True,
            allow_atomic=True,
            max_msg_size=MAX_CALL_RECORD_BYTES,
            republish=(f"results.{region}.{ss}.>", f"{subjects.DONE}.{region}.{ss}.>", False),
            max_consumers=20_000,
            max_msgs_per_subject=1,
            discard="new",
            discard_new_per_subject=True,
        ),
        StreamSpec(
            name=subjects.attempts_stream(region, shard),
            subjects=(f"attempts.{region}.{ss}.>",),
            replicas=replicas,
            max_age_s=8 * DAY_S,
            allow_atomic=True,
        ),
        StreamSpec(
            name=subjects.events_stream(region, shard),
            subjects=(f"events.{region}.{ss}.>",),
            persist_async=True,
            soon_s=HINTS_S,
            max_age_s=7 * DAY_S,
            max_bytes=1 << 30,
        ),
        StreamSpec(
            name=subjects.logs_stream(region, shard),
            subjects=(f"logs.{region}.{ss}.>",),
            persist_async=True,
            max_age_s=3 * DAY_S,
            max_bytes=4 << 30,
            max_consumers=20_000,
        ),
    ]


def _region_streams(region: str, replicas: int) -> list[StreamSpec]:
    return [
        StreamSpec(
            name=subjects.letters_stream(region),
            subjects=(f"letters.{region}.>", f"redrives.{region}.>"),
            replicas=replicas,
            allow_msg_ttl=True,
            allow_atomic=True,
            max_msg_size=MAX_CALL_RECORD_BYTES + 4096,
            max_msgs_per_subject=1,
            discard="new",
            discard_new_per_subject=True,
        ),
        StreamSpec(
            name=subjects.spans_stream(region),
            subjects=(f"spans.{region}.>",),
            persist_async=True,
            soon_s=HINTS_S,
            max_age_s=3 * DAY_S,
            max_bytes=4 << 30,
        ),
        StreamSpec(
            name=subjects.usage_stream(region),
            subjects=(f"usage.{region}.>",),
            replicas=replicas,
            max_age_s=30 * DAY_S,
            duplicate_window_s=120,
        ),
        StreamSpec(
            name=subjects.builds_stream(region),
            subjects=(f"builds.{region}.>",),
            retention="workqueue",
            replicas=replicas,
            max_age_s=DAY_S,
            max_msgs_per_subject=1,
            discard="new",
            discard_new_per_subject=True,
        ),
        StreamSpec(
            name=subjects.queues_stream(region),
            subjects=(f"queues.{region}.>",),
            replicas=replicas,
            allow_msg_ttl=True,
            allow_atomic=True,
            max_msg_size=MAX_CALL_RECORD_BYTES,
            max_msgs_per_subject=MAX_QUEUE_ITEMS,
            discard="new",
            discard_new_per_subject=True,
            duplicate_window_s=120,
            republish=(f"queues.{region}.>", f"queued.{region}.>", True),
        ),
        StreamSpec(
            name=subjects.schedules_stream(region),
            subjects=(f"sched.{region}.>", f"fire.{region}.>"),
            replicas=replicas,
            allow_msg_ttl=True,
            allow_schedules=True,
        ),
    ]


def _buckets(replicas: int) -> tuple[BucketSpec, ...]:
    durable = (
        "apps",
        "specs",
        "desired",
        "containers",
        "verdicts",
        "images",
        "tokens",
        "secrets",
        "schedules",
        "objects",
        "volumes",
    )
    return (
        *(BucketSpec(name=name, replicas=replicas) for name in durable),
        # What the scheduler found when it wrote and read every stream.
        BucketSpec(name="health", storage="memory", replicas=replicas, ttl_s=120),
        # Clients repeat a write that had no answer for a minute.
        BucketSpec(name="dicts", replicas=replicas, allow_atomic=True, duplicate_window_s=90),
        BucketSpec(name="takes", replicas=replicas, allow_atomic=True),
        BucketSpec(name="webhooks", replicas=replicas, allow_atomic=True),
        BucketSpec(name="idem", replicas=replicas, ttl_s=DAY_S),
        BucketSpec(name="nodes", storage="memory", replicas=replicas, ttl_s=10),
        # On file: a memory stream is gone after a restart of the server, and two leaders could overlap.
        BucketSpec(name="leases", replicas=replicas, ttl_s=10),
    )
