"""The subject grammar: functions that build subjects, and the ones that parse them. The only place that spells them.

Tokens are lower-case `[a-z0-9-]+`. Every subject of a stream carries its region, so that a plain publish can only land
in one region's domain; `ss` is the two-digit shard.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from squall.ids import shard_of

ARRIVED = "arrived"
DONE = "done"


def shard_token(shard: int) -> str:
    """`03` for 3."""
    return f"{shard:02d}"


def shard_of_name(name: str, shards: int) -> int:
    """The shard of something that is not a call (an app's logs): a stable hash of its name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % shards


@dataclass(frozen=True, slots=True)
class CallSubject:
    """What a subject about one input says."""

    region: str
    shard: int
    owner: str
    """The pool (calls, arrived) or the workspace (results, done, attempts, events)."""
    call: str
    index: int


def parse_call(subject: str) -> CallSubject:
    """Parse any subject of the form `<kind>.<region>.<ss>.<owner>.<call>.<index>`."""
    _, region, shard, owner, call, index = subject.split(".")
    return CallSubject(region, int(shard), owner, call, int(index))


def _of_call(kind: str, region: str, owner: str, call: str, index: int | str) -> str:
    return f"{kind}.{region}.{shard_of(call):02d}.{owner}.{call}.{index}"


def call(region: str, pool: str, call_id: str, index: int) -> str:
    """Where an accepted input is stored (JOURNAL, and by sourcing WORK)."""
    return _of_call("calls", region, pool, call_id, index)


def requeue(region: str, pool: str, call_id: str, index: int) -> str:
    """Puts an accepted input back into WORK, where it has the subject `call(...)` again; only the reconciler does."""
    return _of_call("requeue", region, pool, call_id, index)


def every_arrival(region: str, shard: int) -> str:
    """Filter: stored inputs of a shard, headers only."""
    return f"{ARRIVED}.{region}.{shard_token(shard)}.>"


def every_done(region: str, shard: int) -> str:
    """Filter: stored results of a shard."""
    return f"{DONE}.{region}.{shard_token(shard)}.>"


def calls_of(region: str, pool: str, call_id: str) -> str:
    """Filter: every input of one call."""
    return _of_call("calls", region, pool, call_id, "*")


def calls_of_pool(region: str, shard: int, pool: str) -> str:
    """Filter: every input of a pool in one shard; also the filter of the pool's durable on WORK."""
    return f"calls.{region}.{shard:02d}.{pool}.>"


def arrived_at_pool(region: str, pool: str) -> str:
    """Filter: stored inputs of a pool, headers only, in every shard."""
    return f"{ARRIVED}.{region}.*.{pool}.>"


def result(region: str, workspace: str, call_id: str, index: int) -> str:
    """Where the one recorded result of an input is."""
    return _of_call("results", region, workspace, call_id, index)


def results_of(region: str, workspace: str, call_id: str) -> str:
    """Filter: every result of one call."""
    return _of_call("results", region, workspace, call_id, "*")


def results_of_workspace(region: str, shard: int, workspace: str) -> str:
    """Filter: every result of a workspace in one shard."""
    return f"results.{region}.{shard_token(shard)}.{workspace}.>"


def done(region: str, workspace: str, call_id: str, index: int | str = "*") -> str:
    """Core subject on which a stored result is republished."""
    return _of_call(DONE, region, workspace, call_id, index)


def attempts(region: str, workspace: str, call_id: str, index: int) -> str:
    """Where failed attempts of an input are counted."""
    return _of_call("attempts", region, workspace, call_id, index)


def attempts_of(region: str, workspace: str, call_id: str) -> str:
    """Filter: failed attempts of every input of one call."""
    return _of_call("attempts", region, workspace, call_id, "*")


def event(region: str, workspace: str, call_id: str, index: int | str) -> str:
    """The readable history of an input."""
    return _of_call("events", region, workspace, call_id, index)


@dataclass(frozen=True, slots=True)
class LetterSubject:
    """What the subject of a dead letter says."""

    subject: str
    app: str
    call: str
    index: int
    failed_at_ms: int


def letter(region: str, workspace: str, app: str, call_id: str, index: int, failed_at: float) -> str:
    """Where a dead letter lies. The time stands in the subject, so that lists need no letter to be read."""
    return f"letters.{region}.{workspace}.{app or '-'}.{call_id}.{index}.{int(failed_at * 1000)}"


def letters_of(region: str, workspace: str, app: str = "*", call_id: str = "*") -> str:
    """Filter: dead letters of a workspace, an app of it or a call of it."""
    return f"letters.{region}.{workspace}.{app}.{call_id}.>"


def parse_letter(subject: str) -> LetterSubject:
    """The inverse of `letter`."""
    _, _, _, app, call_id, index, failed_at_ms = subject.split(".")
    return LetterSubject(subject, app, call_id, int(index), int(failed_at_ms))


def redrive(region: str, workspace: str, call_id: str, index: int | str) -> str:
    """Create-only: into which call a dead letter was redriven; index "*" for all of a call."""
    return f"redrives.{region}.{workspace}.{call_id}.{index}"


def redrives_of(region: str, workspace: str) -> str:
    """Filter: every redrive of a workspace."""
    return f"redrives.{region}.{workspace}.>"


def redriven_from(region: str, workspace: str, call_id: str) -> str:
    """Of which dead letter a call is the redrive."""
    return f"redrives.{region}.{workspace}.{call_id}.from"


def items(region: str, call_id: str) -> str:
    """Core: what a generator yields."""
    return f"items.{region}.{call_id}"


def credit(region: str, call_id: str) -> str:
    """Core: how many items the caller has taken."""
    return f"credit.{region}.{call_id}"


def cancel(region: str, pool: str) -> str:
    """Core: cancels of calls of a pool."""
    return f"cancel.{region}.{pool}"


def cancels(region: str) -> str:
    """Filter: cancels of every pool."""
    return f"cancel.{region}.*"


def demand(region: str, pool: str) -> str:
    """Core: held and running web requests of a pool."""
    return f"demand.{region}.{pool}"


def all_demand(region: str) -> str:
    """Filter: demand of every pool."""
    return f"demand.{region}.*"


def stats(region: str, node: str) -> str:
    """Core: what a node's containers are doing, every second."""
    return f"stats.{region}.{node}"


def all_stats(region: str) -> str:
    """Filter: stats of every node."""
    return f"stats.{region}.*"


def log(region: str, shard: int, app: str, pool: str, call_id: str) -> str:
    """Log lines; `call_id` is `-` for lines of a container outside calls. `shard` is the app's."""
    return f"logs.{region}.{shard:02d}.{app}.{pool}.{call_id}"


def logs_of_app(region: str, shard: int, app: str) -> str:
    """Filter: every log line of an app (or of an image build: the image id stands for the app)."""
    return f"logs.{region}.{shard:02d}.{app}.>"


def spans(region: str, trace_id: str) -> str:
    """Spans of one trace."""
    return f"spans.{region}.{trace_id}"


def usage(region: str, function_id: str) -> str:
    """Usage intervals of one function."""
    return f"usage.{region}.{function_id}"


def build(region: str, image: str) -> str:
    """Command to build an image."""
    return f"builds.{region}.{image}"


def prune(region: str) -> str:
    """Core subject of every builder: images that nothing needs."""
    return f"prune.{region}.builders"


def schedule(region: str, schedule_id: str) -> str:
    """Where the next tick of a schedule waits for its time; the newest message counts."""
    return f"sched.{region}.{schedule_id}"


def fire(region: str, schedule_id: str) -> str:
    """Where ticks of a schedule land when their time has come."""
    return f"fire.{region}.{schedule_id}"


def every_fire(region: str) -> str:
    """Filter: ticks of all schedules."""
    return f"fire.{region}.>"


def queue_items(region: str, workspace: str, object_id: str, partition: str) -> str:
    """The items of one partition of a queue; `partition` is a token."""
    return f"queues.{region}.{workspace}.{object_id}.{partition}"


def queued(region: str) -> str:
    """Core: news of items of queues, without the items."""
    return f"queued.{region}.>"


def command(region: str, node: str) -> str:
    """Core subject of a node's agent: what gateways ask of it."""
    return f"command.{region}.{node}"


def canary(region: str, stream: str) -> str:
    """Where the canary of a stream sings: `canary.local.journal-local-00`."""
    return f"canary.{region}.{stream.lower().replace('_', '-')}"


def canaries(region: str) -> str:
    """Those of all streams. A queue holds its own and its journal's."""
    return f"canary.{region}.>"


def journal_stream(region: str, shard: int) -> str:
    """Stream names, one function each."""
    return f"JOURNAL_{region}_{shard:02d}"


def work_stream(region: str, shard: int) -> str:
    return f"WORK_{region}_{shard:02d}"


def results_stream(region: str, shard: int) -> str:
    return f"RESULTS_{region}_{shard:02d}"


def attempts_stream(region: str, shard: int) -> str:
    return f"ATTEMPTS_{region}_{shard:02d}"


def events_stream(region: str, shard: int) -> str:
    return f"EVENTS_{region}_{shard:02d}"


def logs_stream(region: str, shard: int) -> str:
    return f"LOGS_{region}_{shard:02d}"


def letters_stream(region: str) -> str:
    return f"LETTERS_{region}"


def spans_stream(region: str) -> str:
    return f"SPANS_{region}"


def usage_stream(region: str) -> str:
    return f"USAGE_{region}"


def builds_stream(region: str) -> str:
    return f"BUILDS_{region}"


def schedules_stream(region: str) -> str:
    return f"SCHED_{region}"


def queues_stream(region: str) -> str:
    return f"QUEUES_{region}"


def kv_stream(bucket: str) -> str:
    """The stream in which a bucket lies, in the layout that every NATS tool knows."""
    return f"KV_{bucket}"


def kv_subject(bucket: str, key: str) -> str:
    """Where a key of a bucket is stored."""
    return f"$KV.{bucket}.{key}"


def webhook_deliveries() -> str:
    """Filter: every delivery of a webhook, in the bucket `webhooks`."""
    return kv_subject("webhooks", "event.>")
