"""Which stream stores a subject: the topology as a lookup. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from squall_bus.errors import NotFound
from squall_contracts.subjects import kv_stream, kv_subject
from squall_contracts.topology import BucketSpec, StreamSpec, Topology


@dataclass(frozen=True, slots=True)
class Route:
    """What publishing must know about one stream."""

    stream: str
    atomic: bool
    dedupe_s: float
    """How long the server remembers msg ids."""
    first_write_wins: bool
    soon_s: float = 0.05
    """How long a record that nobody waits for waits for others."""


class Routes:
    """Subject -> route, by the tokens before the first wildcard."""

    def __init__(self, topology: Topology) -> None:
        self._by_prefix: dict[str, Route] = {}
        for spec in topology.streams:
            for pattern in (*spec.subjects, *([spec.canary] if spec.canary else [])):
                self._by_prefix[_prefix(pattern)] = _stream_route(spec)
        for bucket in topology.buckets:
            self._by_prefix[kv_subject(bucket.name, "")[:-1]] = _bucket_route(bucket)
            if bucket.canary:
                self._by_prefix[bucket.canary] = _bucket_route(bucket)
        self._lengths = sorted({prefix.count(".") + 1 for prefix in self._by_prefix}, reverse=True)

    def of(self, subject: str) -> Route:
        """The route of a subject; NotFound when no stream of the topology stores it."""
        tokens = subject.split(".", self._lengths[0]) if self._lengths else []
        for length in self._lengths:
            route = self._by_prefix.get(".".join(tokens[:length]))
            if route is not None:
                return route
        raise NotFound(f"no stream stores {subject}", subject=subject)


def _prefix(pattern: str) -> str:
    tokens = pattern.split(".")
    literal = next((i for i, token in enumerate(tokens) if token in ("*", ">")), len(tokens))
    return ".".join(tokens[:literal])


def _stream_route(spec: StreamSpec) -> Route:
    return Route(
        stream=spec.name,
        atomic=spec.allow_atomic,
        dedupe_s=spec.duplicate_window_s,
        first_write_wins=spec.discard_new_per_subject and spec.max_msgs_per_subject == 1,
        soon_s=spec.soon_s,
    )


KV_DEDUPE_S = 30.0
"""Longer than a publish deadline: a repeated CAS is answered as a duplicate, never as a conflict with itself."""


def kv_dedupe_s(bucket: BucketSpec) -> float:
    wanted = bucket.duplicate_window_s or KV_DEDUPE_S
    return min(wanted, bucket.ttl_s) if bucket.ttl_s else wanted


def _bucket_route(bucket: BucketSpec) -> Route:
    return Route(
        kv_stream(bucket.name), atomic=bucket.allow_atomic, dedupe_s=kv_dedupe_s(bucket), first_write_wins=False
    )
