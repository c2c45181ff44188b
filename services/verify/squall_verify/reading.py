"""Reading the law: JOURNAL, ATTEMPTS, RESULTS, EVENTS and USAGE of a platform, as evidence. Judges nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from squall_bus import Bus, Stored
from squall_contracts import subjects
from squall_contracts.blobs import blob_path, workspace_place
from squall_contracts.calls import DEADLINE_HEADER, AttemptFailed, CallEvent, CallRequested, CallResult
from squall_contracts.envelope import BadMessage
from squall_contracts.functions import SPECS, FunctionRecord
from squall_contracts.usage import UsageIntervals
from squall_verify.evidence import Accepted, Counted, FunctionFacts, Key, Recorded, Told, Used

NONCE = re.compile(rb"nx-[0-9a-f]{16}")
"""What every execution of the harness's program puts into its value. Payloads are searched, never unpickled."""


async def everywhere(bus: Bus, stream_of: Callable[[str, int], str]) -> AsyncIterator[Stored]:
    """Every record of a kind of stream, shard by shard."""
    for shard in range(bus.topology.shards):
        async for stored in bus.read(stream_of(bus.topology.region, shard)):
            yield stored


async def accepted(bus: Bus) -> list[Accepted]:
    """JOURNAL."""
    return [accepted_of(stored) async for stored in everywhere(bus, subjects.journal_stream)]


def accepted_of(stored: Stored) -> Accepted:
    """One record of JOURNAL; what cannot be read says so."""
    place = subjects.parse_call(stored.subject)
    try:
        request: CallRequested | None = CallRequested.decode(stored.data)
    except BadMessage:
        request = None
    try:
        deadline = float(stored.headers.get(DEADLINE_HEADER, "inf"))
    except ValueError:
        deadline = float("inf")
    return Accepted(
        call=place.call,
        index=place.index,
        pool=place.owner,
        function=request.function if request else "",
        kind=request.kind if request else "",
        stored_at=stored.stored_at,
        deadline=deadline,
        seq=stored.seq,
        blob=(request.blob or "") if request else "",
        workspace=request.workspace if request else "",
        webhook=request.webhook if request else "",
        readable=request is not None,
    )


async def recorded(bus: Bus, blobs: Path) -> list[Recorded]:
    """RESULTS."""
    return [recorded_of(stored, blobs) async for stored in everywhere(bus, subjects.results_stream)]


def recorded_of(stored: Stored, blobs: Path) -> Recorded:
    """One record of RESULTS."""
    result = CallResult.decode(stored.data)
    payload = result.payload
    if result.blob:
        path = blob_of(blobs, result.workspace, result.blob)
        payload = path.read_bytes() if path.exists() else b""
    found = NONCE.search(payload)
    return Recorded(
        call=result.call,
        index=result.index,
        outcome=result.outcome,
        attempt=result.attempt,
        stored_at=stored.stored_at,
        started_at=result.started_at,
        ended_at=result.ended_at,
        node=result.node,
        container=result.container,
        blob=result.blob or "",
        workspace=result.workspace,
        nonce=found.group().decode() if found and result.outcome == "succeeded" else "",
        error=str(result.error.get("kind", "")) if result.error else "",
        digest=hashlib.sha256(stored.data).hexdigest()[:16],
    )


def blob_of(blobs: Path, workspace: str, ref: str) -> Path:
    """Where the platform on this machine keeps the blob that a record of a workspace names."""
    return blobs / workspace_place(workspace) / blob_path(ref.partition(":")[0])


def blob_state(blobs: Path, workspace: str, ref: str) -> str:
    """Whether a blob is what its name says."""
    path, (digest, _, size) = blob_of(blobs, workspace, ref), ref.partition(":")
    if not path.exists():
        return "missing"
    data = path.read_bytes()
    return "ok" if len(data) == int(size) and hashlib.sha256(data).hexdigest() == digest else "different"


async def counted(bus: Bus) -> list[Counted]:
    """ATTEMPTS."""
    return [counted_of(stored) async for stored in everywhere(bus, subjects.attempts_stream)]


def counted_of(stored: Stored) -> Counted:
    """One record of ATTEMPTS."""
    failed = AttemptFailed.decode(stored.data)
    return Counted(
        call=failed.call,
        index=failed.index,
        attempt=failed.attempt,
        kind=failed.kind,
        user=failed.user_failures,
        infra=failed.infra_failures,
        failed_at=failed.failed_at,
        retry_at=failed.retry_at,
        stored_at=stored.stored_at,
        reason=failed.reason,
    )


async def told(bus: Bus) -> list[Told]:
    """EVENTS."""
    found = []
    async for stored in everywhere(bus, subjects.events_stream):
        event = CallEvent.decode(stored.data)
        found.append(
            Told(
                call=event.call,
                index=event.index,
                event=event.event,
                at=event.at,
                attempt=event.attempt,
                node=event.node,
                detail=event.detail,
            )
        )
    return found


async def used(bus: Bus) -> list[Used]:
    """USAGE, each attempt once."""
    found: dict[tuple[str, int, str], Used] = {}
    async for stored in bus.read(subjects.usage_stream(bus.topology.region)):
        message = UsageIntervals.decode(stored.data)
        for call, index, attempt, container, started_at, ended_at, outcome in message.intervals:
            found[call, index, attempt] = Used(
                call=call,
                index=index,
                attempt=attempt,
                container=container,
                started_at=started_at,
                ended_at=ended_at,
                outcome=outcome,
                node=message.node,
            )
    return list(found.values())


async def letters(bus: Bus) -> list[Key]:
    """LETTERS: the inputs that have one."""
    region = bus.topology.region
    found = await bus.stream_info(subjects.letters_stream(region), subjects.letters_of(region, "*"))
    return sorted((letter.call, letter.index) for letter in map(subjects.parse_letter, found.subjects))


async def functions(bus: Bus) -> dict[str, FunctionFacts]:
    """What was declared, by function id."""
    found = {}
    for entry in await bus.kv(SPECS).entries():
        if entry.key.startswith("pool."):
            continue
        record = FunctionRecord.decode(entry.value)
        spec = record.spec
        found[record.function_id] = FunctionFacts(
            name=spec.name,
            max_retries=spec.retry.max_retries,
            initial_delay_s=spec.retry.initial_delay_s,
            backoff=spec.retry.backoff_coefficient,
            max_delay_s=spec.retry.max_delay_s,
            timeout_s=spec.timeout_s,
            max_containers=spec.scaling.max_containers,
            min_containers=spec.scaling.min_containers,
            scaledown_window_s=spec.scaling.scaledown_window_s,
            max_inputs=spec.scaling.max_inputs,
        )
    return found
