"""`squall logs`: what containers wrote, as they wrote it; standard output to standard output, errors to errors."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Optional

from squall.cli import lookup
from squall.cli.server import for_command
from squall.client import BROKEN, Client, Retry, query
from squall.http_api import CallSummary, LogEntry, Route
from squall.spec import from_wire


@dataclass(frozen=True)
class Wanted:
    """Which lines; None = any."""

    function: Optional[str] = None
    call: Optional[str] = None
    container: Optional[str] = None
    stream: Optional[str] = None

    def matches(self, entry: LogEntry) -> bool:
        """Whether a line is one of them."""
        pairs = (
            (self.function, entry.function),
            (self.call, entry.call),
            (self.container, entry.container),
            (self.stream, entry.stream),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


def logs(
    name: str,
    wanted: Wanted,
    *,
    follow: bool,
    tail: int,
    timestamps: bool,
    environment: Optional[str],
    as_json: bool,
) -> int:
    """Prints the log of an app, or of one call."""
    with for_command() as session:
        if name.startswith("fc-"):
            summary = from_wire(CallSummary, session.client.json("GET", Route.CALL.format(call=name)))
            app_id = summary.app
            wanted = Wanted(wanted.function, name, wanted.container, wanted.stream)
        else:
            app_id = lookup.app(session.client, name, environment).app_id
        for entry in entries(session.client, app_id, follow=follow, tail=tail):
            if wanted.matches(entry):
                _print(entry, timestamps, as_json)
    return 0


def entries(client: Client, app_id: str, *, follow: bool, tail: Optional[int]) -> Iterator[LogEntry]:
    """The lines of an app; a broken connection goes on after the last line that came."""
    cursor, retry = "", Retry(client)
    while True:
        path = query(
            Route.APP_LOGS.format(app=app_id),
            follow=1 if follow else None,
            cursor=cursor or None,
            tail=None if cursor else tail,
        )
        try:
            with client.stream("GET", path) as stream:
                for line in stream.lines():
                    retry.progress()
                    entry = from_wire(LogEntry, line)
                    cursor = entry.cursor or cursor
                    yield entry
            return
        except BROKEN as error:
            retry.wait(error)


def _print(entry: LogEntry, timestamps: bool, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(entry)) + "\n")
        return
    out = sys.stderr if entry.stream == "stderr" else sys.stdout
    if timestamps:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.at))
        out.write(f"{moment}.{int(entry.at % 1 * 1000):03d} ")
    out.write(entry.text)
    out.flush()
