"""`squall logs`: what containers wrote, as they wrote it; standard output to standard output, errors to errors."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Optional

from squall import ids
from squall.cli import lookup
from squall.cli.server import for_command
from squall.client import BROKEN, Client, Retry, query
from squall.errors import UsageError
from squall.http_api import CallSummary, LogEntry, Route
from squall.spec import from_wire

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Wanted:
    """Which lines; None = any."""

    function: Optional[str] = None
    call: Optional[str] = None
    container: Optional[str] = None
    stream: Optional[str] = None
    since: Optional[float] = None
    """Unix seconds: only what was written after it."""
    until: Optional[float] = None
    """Only what was written before it."""
    search: Optional[str] = None
    """Only lines with that text, whatever its case."""
    tail: Optional[int] = None
    """How many of the last ones to begin with; None = all."""


def logs(
    name: str, wanted: Wanted, *, follow: bool, timestamps: bool, environment: Optional[str], as_json: bool
) -> int:
    """Prints the log of an app, or of one call."""
    if follow and wanted.until is not None:
        raise UsageError("--until does not go with --follow", fix="Leave out one of them.")
    with for_command() as session:
        if name.startswith("fc-"):
            summary = from_wire(
                CallSummary, session.client.json("GET", Route.CALL.format(call=ids.check_call_id(name)))
            )
            app_id, wanted = summary.app, replace(wanted, call=name)
        else:
            app_id = lookup.app(session.client, name, environment).app_id
        found = entries(session.client, app_id, wanted, follow=follow)
        if wanted.container is not None:
            found = _of_container(found, wanted, follow)
        for entry in found:
            _print(entry, timestamps, as_json)
    return 0


def entries(client: Client, app_id: str, wanted: Wanted, *, follow: bool) -> Iterator[LogEntry]:
    """The lines of an app; after a broken connection it goes on behind the last line that came."""
    cursor, retry = "", Retry(client)
    # The server does not know containers: those lines are counted here.
    tail = wanted.tail if wanted.container is None else None
    while True:
        path = query(
            Route.APP_LOGS.format(app=app_id),
            follow=1 if follow else None,
            cursor=cursor or None,
            tail=None if cursor else tail,
            call=wanted.call,
            function=wanted.function,
            stream=wanted.stream,
            since=wanted.since,
            until=wanted.until,
            search=wanted.search,
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


def moment(text: Optional[str], option: str) -> Optional[float]:
    """`10m` ago, or a date or time of this machine's clock, as unix seconds. Raises `UsageError`."""
    if text is None:
        return None
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}.*", text):
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            pass
    if not re.fullmatch(r"[\d.]+[smhd]", text):
        raise UsageError(f"{option} {text!r} is not a time", fix="Use 30s, 10m, 2h, 1d ago, or 2026-05-31T14:00.")
    return time.time() - seconds(text, option)


def seconds(age: str, option: str = "--since") -> float:
    """`10m` in seconds. Raises `UsageError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", age)
    if not found:
        raise UsageError(f"{option} {age!r} is not a time", fix="Use 30s, 10m, 2h or 1d.")
    return float(found[1]) * _UNITS[found[2]]


def _of_container(lines: Iterator[LogEntry], wanted: Wanted, follow: bool) -> Iterator[LogEntry]:
    matching = (entry for entry in lines if entry.container == wanted.container)
    return matching if follow or wanted.tail is None else iter(deque(matching, maxlen=wanted.tail))


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
