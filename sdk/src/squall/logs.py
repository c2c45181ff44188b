"""What containers wrote: the lines of an app, of a function or of a call, from the server."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable, NamedTuple, Optional, Union

from squall.blocking import blocking, blocking_iterator
from squall.client import BROKEN, Client, Retry, query
from squall.declaration import is_number, is_whole
from squall.errors import InvalidError
from squall.http_api.routes import Route
from squall.http_api.traces import LogEntry as Line
from squall.spec import from_wire

Moment = Union[datetime, float, None]
SOURCES = ("stdout", "stderr", "system")


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


def entries(client: Client, app_id: str, wanted: Wanted, *, follow: bool) -> Iterator[Line]:
    """The lines that are wanted, oldest first; `follow`: and those to come, until the app has ended."""
    found = _lines(client, app_id, wanted, follow)
    if wanted.container is None:
        return found
    matching = (line for line in found if line.container == wanted.container)
    return matching if follow or wanted.tail is None else iter(deque(matching, maxlen=wanted.tail))


def _lines(client: Client, app_id: str, wanted: Wanted, follow: bool) -> Iterator[Line]:
    """After a broken connection it goes on behind the last line that came."""
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
                    entry = from_wire(Line, line)
                    cursor = entry.cursor or cursor
                    yield entry
            return
        except BROKEN as error:
            retry.wait(error)


class LogEntry(NamedTuple):
    """Text that a container wrote: a line, or a part of one."""

    timestamp: datetime
    source: str
    """"stdout", "stderr" or "system"."""
    message: str
    """As it was written: the end of the line is in it."""
    function: str
    container: str
    call: str
    """The call that wrote it, where that is known."""


class LogScope(NamedTuple):
    """Whose lines."""

    client: Client
    app_id: str
    function: Optional[str] = None
    call: Optional[str] = None


class Logs:
    """`logs` of an app, a function or a call."""

    def __init__(self, scope: Callable[[], LogScope]) -> None:
        self._scope = scope

    @blocking
    def fetch(
        self,
        since: Moment = None,
        until: Moment = None,
        *,
        source: Optional[str] = None,
        search: Optional[str] = None,
        container: Optional[str] = None,
    ) -> list[LogEntry]:
        """Everything that was written, or what lies between two moments (`datetime`, or seconds since 1970)."""
        wanted = _wanted(since=since, until=until, source=source, search=search, container=container)
        return list(self._entries(wanted, follow=False))

    @blocking
    def tail(
        self,
        entries: int = 100,
        *,
        source: Optional[str] = None,
        search: Optional[str] = None,
        container: Optional[str] = None,
    ) -> list[LogEntry]:
        """The last ones."""
        if not is_whole(entries) or entries < 1:
            raise InvalidError(f"tail() takes a number of entries from 1, got {entries!r}")
        wanted = _wanted(tail=entries, source=source, search=search, container=container)
        return list(self._entries(wanted, follow=False))

    @blocking_iterator
    def stream(
        self,
        *,
        since: Moment = None,
        source: Optional[str] = None,
        search: Optional[str] = None,
        container: Optional[str] = None,
    ) -> Iterator[LogEntry]:
        """Those to come, as they are written (and those since a moment), until the app has ended."""
        tail = 0 if since is None else None
        return self._entries(
            _wanted(since=since, tail=tail, source=source, search=search, container=container), follow=True
        )

    def _entries(self, wanted: dict[str, Any], follow: bool) -> Iterator[LogEntry]:
        scope = self._scope()
        chosen = Wanted(function=scope.function, call=scope.call, **wanted)
        for line in entries(scope.client, scope.app_id, chosen, follow=follow):
            moment = datetime.fromtimestamp(line.at).astimezone()
            yield LogEntry(moment, line.stream, line.text, line.function, line.container, line.call)


def _wanted(*, since: Moment = None, until: Moment = None, source: Optional[str], **others: Any) -> dict[str, Any]:
    if source is not None and source not in SOURCES:
        raise InvalidError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    return {"since": _seconds(since), "until": _seconds(until), "stream": source, **others}


def _seconds(moment: Moment) -> Optional[float]:
    if isinstance(moment, datetime):
        return moment.timestamp()
    if moment is None or is_number(moment):
        return moment
    raise InvalidError(f"a moment is a datetime or a number of seconds since 1970, got {moment!r}")
