"""Recent web requests, for lists of calls: read from the lines that gateways write about them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from squall.http_api.calls import CallSummary
from squall.ids import created_at
from squall.spec import Outcome
from squall_bus import Bus
from squall_contracts import subjects
from squall_contracts.functions import AppRecord
from squall_contracts.logs import LogLines
from squall_gateway.directory import Directory
from squall_gateway.results import closing
from squall_gateway.single_copies import CopyAwayError, check_copy
from squall_gateway.web.records import CALL_TOKEN

KIND = "web"
LOOK_BACK = 20_000
"""Messages of the log stream that are looked through."""
ANY_POOL = "*"
_LINE = re.compile(r"(\S+) (\S+) (\d+|-) ([\d.]+) ms (fc-[0-9a-z]+)\n")


class WebHistory:
    """Reads them."""

    def __init__(self, bus: Bus, directory: Directory) -> None:
        self._bus = bus
        self._directory = directory

    async def recent(
        self, apps: Iterable[AppRecord], function: str, workspace: str, limit: int
    ) -> tuple[list[CallSummary], str]:
        """The newest of some apps, newest first, of one function if it is named; and why some are missing."""
        found: list[CallSummary] = []
        missing = ""
        by_shard: dict[int, list[str]] = {}
        for app in apps:
            if app.web:
                shard = subjects.shard_of_name(app.app_id, self._bus.topology.shards)
                by_shard.setdefault(shard, []).append(app.app_id)
        for shard, of_shard in by_shard.items():
            stream = subjects.logs_stream(self._bus.topology.region, shard)
            try:
                await check_copy(self._bus, stream, "some web requests")
            except CopyAwayError as error:
                missing = error.message
                continue
            for app_id in of_shard:
                found += await self._of_app(app_id, stream, shard, function, workspace, limit)
        return sorted(found, key=lambda summary: -summary.accepted_at)[:limit], missing

    async def _of_app(
        self, app_id: str, stream: str, shard: int, function: str, workspace: str, limit: int
    ) -> Iterable[CallSummary]:
        topology = self._bus.topology
        start = max(1, (await self._bus.stream_info(stream)).last_seq - LOOK_BACK)
        wanted = subjects.log(topology.region, shard, app_id, ANY_POOL, CALL_TOKEN)
        newest: deque[CallSummary] = deque(maxlen=limit)
        async with closing(self._bus.read(stream, wanted, start_seq=start)) as records:
            async for stored in records:
                lines = LogLines.decode(stored.data)
                name = await self._directory.function_name(lines.function, workspace)
                if function in ("", name):
                    newest.extend(each for line in lines.lines if (each := summary_of(app_id, name, line)))
        return newest


def summary_of(app_id: str, function: str, line: list[object]) -> CallSummary | None:
    """A request as a row of a list; None for a line that is about none."""
    at, _, text = line
    match = _LINE.fullmatch(str(text))
    if match is None:
        return None
    method, path, status, _, call = match.groups()
    failed = status != "-" and int(status) >= 500
    state = Outcome.CANCELLED if status == "-" else Outcome.FAILED if failed else Outcome.SUCCEEDED
    return CallSummary(
        call=call,
        app=app_id,
        function=function,
        kind=KIND,
        state=state.value,
        inputs=1,
        finished=1,
        failed=int(failed),
        accepted_at=created_at(call),
        ended_at=float(str(at)),
        error=f"HTTP {status} of {method} {path}" if failed else "",
    )
