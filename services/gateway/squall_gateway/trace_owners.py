"""Whose the spans of a trace are. Trace ids travel in headers to whoever is called, other workspaces too, and callers
choose theirs: a trace may hold spans of several workspaces, each of which sees its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from squall.errors import InvalidError, NotFoundError
from squall.http_api.traces import SpanInfo
from squall.ids import CALL_ID
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.builds import IMAGE_IDS
from squall_contracts.calls import CallRequested
from squall_contracts.envelope import BadMessage
from squall_contracts.spans import WEB_REQUEST
from squall_gateway.directory import Directory
from squall_gateway.image_records import ImageRecords
from squall_gateway.results import ANY_POOL

BATCH = 32
"""Calls whose records are read together: with inline payloads they have up to 64 KiB each."""


@dataclass(frozen=True, slots=True)
class TraceOwners:
    """Tells spans of one workspace from those of others."""

    bus: Bus
    directory: Directory
    images: ImageRecords

    async def own(self, found: Iterable[SpanInfo], workspace: str) -> list[SpanInfo]:
        """The spans about calls, web requests and images of the workspace."""
        spans = list(found)
        about = {call_of(span): span.attributes.get("index") for span in spans}
        calls = {call: index if isinstance(index, int) else 0 for call, index in about.items() if self._is_call(call)}
        mine, others = await self._recorded(calls, workspace)
        for span in spans:  # web requests are in no journal, but name their function
            if span.name == WEB_REQUEST:
                declared = await self._declared(str(span.attributes.get("function_id", "")), workspace)
                (mine if declared else others).add(call_of(span))
        # Callers choose ids: a call that somebody else has too is not shown.
        others |= calls.keys() - mine
        images = [each for each in about if each.startswith(IMAGE_IDS)]
        others |= {image for image in images if not await self._asked_for(image, workspace)}
        return [span for span in spans if call_of(span) not in others]

    def _is_call(self, text: str) -> bool:
        return CALL_ID.fullmatch(text) is not None and int(text[-2:]) < self.bus.topology.shards

    async def _recorded(self, calls: dict[str, int], workspace: str) -> tuple[set[str], set[str]]:
        """Of these, by index, the calls that the journal has of the workspace, and of another."""
        shards: defaultdict[int, list[str]] = defaultdict(list)
        region, found = self.bus.topology.region, (set[str](), set[str]())
        for call, index in calls.items():
            shards[int(call[-2:])].append(subjects.call(region, ANY_POOL, call, index))
        for shard, wanted in shards.items():
            for first in range(0, len(wanted), BATCH):
                part = wanted[first : first + BATCH]
                stored = await self.bus.get_many(subjects.journal_stream(region, shard), part)
                for each in stored.values():
                    try:
                        record = CallRequested.decode(each.data)
                    except BadMessage:
                        continue
                    found[record.workspace != workspace].add(record.call)
        return found

    async def _asked_for(self, image: str, workspace: str) -> bool:
        try:
            await self.images.record(image, workspace)
        except (NotFoundError, InvalidError):
            return False
        return True

    async def _declared(self, function_id: str, workspace: str) -> bool:
        try:
            await self.directory.function(function_id, workspace)
        except NotFoundError:
            return False
        return True


def call_of(span: SpanInfo) -> str:
    """The call, web request or image that a span is about."""
    return str(span.attributes.get("call", ""))
