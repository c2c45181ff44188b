"""Streams, buckets and consumers: makes them as the topology says, counts, purges, deletes."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from squall_bus import js
from squall_bus.consume import event
from squall_bus.errors import BusError, BusUnavailable, NotFound, TopologyConflict, TopologyMissing
from squall_bus.link import Link
from squall_bus.records import ConsumerInfo, ConsumerSpec, Sourcing, StoreInfo, StreamInfo
from squall_bus.routes import kv_dedupe_s
from squall_bus.wire import unix_time
from squall_contracts.subjects import kv_stream
from squall_contracts.topology import BucketSpec, StreamSpec, Topology

AT_ONCE = 16
"""Streams made at the same time: 2 cores and one disk gain nothing from more."""
CREATE_TIMEOUT_S = 15.0
TOPOLOGY_POLL_S = 0.1
REMAKE_S = 1.0
_EXISTS_OTHERWISE = 10058


async def check_jetstream(link: Link) -> None:
    """Wait until JetStream answers; a server that has just started may still be loading."""
    try:
        await js.api(link, "INFO", timeout_s=link.settings.connect_timeout_s)
    except BusUnavailable as error:
        raise BusUnavailable("the server has no JetStream", url=link.settings.address) from error


class Administration:
    """Everything that is not a message."""

    def __init__(self, link: Link, topology: Topology) -> None:
        self._link = link
        self._topology = topology
        self._in_memory: list[dict[str, Any]] = []
        """Streams in the server's memory, if it is us who make them again."""

    # ------------------------------------------------------------------ topology

    async def await_topology(self, timeout_s: float) -> None:
        """By name only: whether they are as wanted is the business of who made them.

        What a server has forgotten that was restarted before we knew it, no reconnect tells: who keeps it makes it."""
        streams, buckets = self._topology.streams, self._topology.buckets
        wanted = {spec.name for spec in streams} | {kv_stream(spec.name) for spec in buckets}
        until = self._link.loop.time() + timeout_s
        while missing := sorted(wanted - await self._stream_names()):
            if self._link.loop.time() >= until:
                shown = ", ".join(missing[:5])
                raise TopologyMissing(
                    f"{len(missing)} of {len(wanted)} streams are missing: {shown} ...", streams=shown
                )
            if set(missing) <= {config["name"] for config in self._in_memory}:  # else there is no topology yet
                await self._remake_memory()
            await asyncio.sleep(TOPOLOGY_POLL_S)

    async def _stream_names(self) -> set[str]:
        found: list[str] = []
        while True:
            answer = await js.api(self._link, "STREAM.NAMES", {"offset": len(found)})
            page = answer["streams"] or []
            found += page
            if not page or len(found) >= answer["total"]:
                return set(found)

    async def ensure_stream(self, name: str) -> None:
        await self._ensure_stream(stream_config(self._spec(name)))

    async def ensure_topology(self) -> None:
        """Sources come after what they source, or the server would have to wait for it."""
        configs = [stream_config(spec) for spec in self._topology.streams]
        configs += [bucket_config(spec) for spec in self._topology.buckets]
        await self._ensure_all([config for config in configs if "sources" not in config])
        await self._ensure_all([config for config in configs if "sources" in config])
        self.keep_memory_streams()

    def keep_memory_streams(self) -> None:
        """A server that restarted has forgotten its streams in memory altogether, not only what was in them."""
        if self._in_memory:
            return
        self._in_memory += [stream_config(spec) for spec in self._topology.streams if spec.storage == "memory"]
        self._in_memory += [bucket_config(spec) for spec in self._topology.buckets if spec.storage == "memory"]

        def remake() -> None:
            self._link.start(self._remade(), "bus memory streams")

        self._link.on_reconnect(remake)

    async def _remade(self) -> None:
        """Until they are there, or the connection is gone once more: nobody else makes them."""
        while not await self._remake_memory():
            await asyncio.sleep(REMAKE_S)
            if not self._link.connected:
                return

    async def _remake_memory(self) -> bool:
        try:
            await self._ensure_all(self._in_memory)
        except BusError as error:
            event(logging.ERROR, "bus_memory_streams_missing", error=repr(error))
            return False
        return True

    async def _ensure_all(self, configs: list[dict[str, Any]]) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def ensure(config: dict[str, Any]) -> None:
            async with slots:
                await self._ensure_stream(config)

        try:
            async with asyncio.TaskGroup() as tasks:
                for config in configs:
                    tasks.create_task(ensure(config))
        except* BusError as group:
            raise group.exceptions[0] from None

    async def _ensure_stream(self, config: dict[str, Any]) -> None:
        name = config["name"]
        try:
            await js.api(self._link, f"STREAM.CREATE.{name}", config, CREATE_TIMEOUT_S)
            return
        except TopologyConflict as error:
            if error.data["server_code"] != _EXISTS_OTHERWISE:
                raise
        if "sources" in config:
            config = await self._with_live_sources(config)
        try:
            await js.api(self._link, f"STREAM.UPDATE.{name}", config, CREATE_TIMEOUT_S)
        except BusUnavailable:
            raise
        except BusError as error:
            raise TopologyConflict(f"stream {name} cannot be changed as wanted: {error}", stream=name) from error

    async def _with_live_sources(self, config: dict[str, Any]) -> dict[str, Any]:
        """Another start or filter of a source would take everything over again: what `restart_source` wrote stays."""
        live = (await js.api(self._link, f"STREAM.INFO.{config['name']}"))["config"].get("sources") or []
        same = [source["name"] for source in live] == [source["name"] for source in config["sources"]]
        return {**config, "sources": live} if same else config

    # ------------------------------------------------------------------ streams

    async def restart_source(self, stream: str, source: str, start_seq: int) -> None:
        spec = self._spec(stream)
        live = (await js.api(self._link, f"STREAM.INFO.{stream}"))["config"]["sources"]
        filtered = next((each.get("filter_subject") for each in live if each["name"] == source), None)
        # To the server a source with another filter is another source: it drops the one that waits, and begins with
        # this one at once. Both filters match everything in the source.
        fresh = {"name": source, "opt_start_seq": max(1, start_seq)}
        if not filtered:
            fresh["filter_subject"] = self._spec(source).subjects[0]
        sources = [fresh if each["name"] == source else each for each in live]
        await js.api(self._link, f"STREAM.UPDATE.{stream}", {**stream_config(spec), "sources": sources})

    async def drop_stream(self, stream: str) -> None:
        await js.api(self._link, f"STREAM.DELETE.{self._spec(stream).name}")

    def _spec(self, stream: str) -> StreamSpec:
        return next(spec for spec in self._topology.streams if spec.name == stream)

    async def stream_info(self, stream: str, subjects_filter: str | None) -> StreamInfo:
        subjects: dict[str, int] = {}
        body: dict[str, Any] = {"offset": 0}
        if subjects_filter is not None:
            body["subjects_filter"] = subjects_filter
        while True:
            answer = await js.api(self._link, f"STREAM.INFO.{stream}", body)
            page = answer["state"].get("subjects") or {}
            subjects.update(page)
            if subjects_filter is None or not page or len(subjects) >= answer.get("total", 0):
                break
            body["offset"] = len(subjects)
        state = answer["state"]
        return StreamInfo(
            messages=state["messages"],
            bytes=state["bytes"],
            first_seq=state["first_seq"],
            last_seq=state["last_seq"],
            subjects=subjects,
            sources={source["name"]: _sourcing(source) for source in answer.get("sources") or []},
        )

    async def clock_skew(self) -> float:
        stream = self._topology.streams[0].name
        asked = datetime.now(UTC).timestamp()
        answer = await js.api(self._link, f"STREAM.INFO.{stream}")
        answered = datetime.now(UTC).timestamp()
        return (asked + answered) / 2 - unix_time(answer["ts"])

    async def store_info(self) -> StoreInfo:
        answer = await js.api(self._link, "INFO")
        limit = int(answer["limits"]["max_storage"])
        return StoreInfo(used_bytes=answer["storage"], limit_bytes=limit if limit > 0 else None)

    async def purge(self, stream: str, filter_subject: str, below_seq: int | None) -> int:
        body: dict[str, Any] = {"filter": filter_subject}
        if below_seq is not None:
            body["seq"] = below_seq
        answer = await js.api(self._link, f"STREAM.PURGE.{stream}", body)
        return int(answer["purged"])

    async def delete_message(self, stream: str, seq: int) -> bool:
        try:
            await js.api(self._link, f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except NotFound as error:
            if error.data["server_code"] == 10059:
                raise
            return False
        return True

    # ------------------------------------------------------------------ consumers

    async def ensure_consumer(self, stream: str, spec: ConsumerSpec) -> None:
        command = f"CONSUMER.CREATE.{stream}.{spec.name}.{spec.filter_subject}"
        body = {"stream_name": stream, "action": "", "config": consumer_config(spec)}
        await js.api(self._link, command, body)

    async def delete_consumer(self, stream: str, name: str) -> bool:
        try:
            await js.api(self._link, f"CONSUMER.DELETE.{stream}.{name}")
        except NotFound:
            return False
        return True

    async def consumer_info(self, stream: str, name: str) -> ConsumerInfo | None:
        try:
            return _consumer_info(await js.api(self._link, f"CONSUMER.INFO.{stream}.{name}"))
        except NotFound:
            return None

    async def pause_consumer(self, stream: str, name: str, for_s: float) -> None:
        answer = await js.api(self._link, f"CONSUMER.INFO.{stream}.{name}")
        # By the server's clock, which may not be ours.
        until = datetime.fromtimestamp(unix_time(answer["ts"]) + for_s, UTC)
        body = {"pause_until": until.isoformat().replace("+00:00", "Z")}
        await js.api(self._link, f"CONSUMER.PAUSE.{stream}.{name}", body)

    async def list_consumers(self, stream: str) -> list[ConsumerInfo]:
        found: list[ConsumerInfo] = []
        while True:
            answer = await js.api(self._link, f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            page = answer["consumers"] or []
            found += [_consumer_info(each) for each in page]
            if not page or len(found) >= answer["total"]:
                return found


def _sourcing(answer: dict[str, Any]) -> Sourcing:
    active = answer.get("active", -1)
    return Sourcing(
        lag=answer["lag"],
        seq=answer.get("seq", 0),
        silent_s=None if active < 0 else active / 1e9,
        error=(answer.get("error") or {}).get("description", ""),
    )


def _consumer_info(answer: dict[str, Any]) -> ConsumerInfo:
    return ConsumerInfo(
        name=answer["name"],
        pending=answer["num_pending"],
        ack_pending=answer["num_ack_pending"],
        waiting=answer["num_waiting"],
        ack_floor_seq=answer["ack_floor"]["stream_seq"],
        delivered_seq=answer["delivered"]["stream_seq"],
        filter_subject=answer["config"].get("filter_subject", ""),
    )


def consumer_config(spec: ConsumerSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "durable_name": spec.name,
        "name": spec.name,
        "filter_subject": spec.filter_subject,
        "ack_policy": "explicit",
        "deliver_policy": "new" if spec.only_new else "all",
        "replay_policy": "instant",
        "ack_wait": js.nanoseconds(spec.ack_wait_s),
        "max_ack_pending": spec.max_ack_pending,
        "max_deliver": spec.max_deliver,
        "max_waiting": spec.max_waiting,
    }
    if spec.prioritized:
        config |= {"priority_groups": ["g"], "priority_policy": "prioritized"}
    return config


def stream_config(spec: StreamSpec) -> dict[str, Any]:
    """The server's form of a stream. Every field is spelled out: 2.15 limits consumers to 1,000 by default."""
    config: dict[str, Any] = {
        "name": spec.name,
        "retention": spec.retention,
        "storage": spec.storage,
        "num_replicas": spec.replicas,
        "max_age": js.nanoseconds(spec.max_age_s),
        "max_bytes": spec.max_bytes,
        "max_msg_size": spec.max_msg_size,
        "max_msgs": -1,
        "max_msgs_per_subject": spec.max_msgs_per_subject,
        "max_consumers": spec.max_consumers,
        "discard": spec.discard,
        "discard_new_per_subject": spec.discard_new_per_subject,
        "duplicate_window": js.nanoseconds(spec.duplicate_window_s),
        "allow_direct": spec.allow_direct,
        "allow_msg_ttl": spec.allow_msg_ttl,
        "allow_atomic": spec.allow_atomic,
        "allow_msg_schedules": spec.allow_schedules,
    }
    if spec.subjects or spec.canary:
        config["subjects"] = [*spec.subjects, *([spec.canary] if spec.canary else [])]
    if spec.persist_async:
        config["persist_mode"] = "async"
    if spec.sources:
        config["sources"] = [{"name": name} for name in spec.sources]
    if spec.republish is not None:
        source, destination, headers_only = spec.republish
        config["republish"] = {"src": source, "dest": destination, "headers_only": headers_only}
    if spec.subject_transform is not None:
        source, destination = spec.subject_transform
        config["subject_transform"] = {"src": source, "dest": destination}
    return config


def bucket_config(spec: BucketSpec) -> dict[str, Any]:
    """A bucket is a stream in the layout that every NATS tool knows."""
    return {
        "name": kv_stream(spec.name),
        "subjects": [f"$KV.{spec.name}.>", *([spec.canary] if spec.canary else [])],
        "retention": "limits",
        "storage": spec.storage,
        "num_replicas": spec.replicas,
        "max_age": js.nanoseconds(spec.ttl_s),
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": spec.history,
        "max_consumers": spec.max_consumers,
        "discard": "new",
        "duplicate_window": js.nanoseconds(kv_dedupe_s(spec)),
        "allow_direct": True,
        "allow_msg_ttl": True,
        "allow_rollup_hdrs": True,
        "allow_atomic": spec.allow_atomic,
    }
