"""Log lines: events with fields, as JSON for machines or as text for people. Owns the root handler of the process."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["auto", "json", "human"]

current_service: ContextVar[str] = ContextVar("squall_service", default="")
"""Which service a task belongs to: in the embedded platform they all share one process."""

_events = logging.getLogger("squall")


class EventLog:
    """`log.info("container_placed", container="c-1", node="gpu-3")`: a stable snake_case name, ids as fields."""

    def __init__(self, **bound: object) -> None:
        self._bound = bound

    def bind(self, **fields: object) -> EventLog:
        """A log that adds these fields to every event."""
        return EventLog(**{**self._bound, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, /, *, error: BaseException | None = None, **fields: object) -> None:
        """With `error`, its traceback is logged too."""
        self._write(logging.ERROR, event, fields, error)

    def _write(self, level: int, event: str, fields: dict[str, object], error: BaseException | None = None) -> None:
        if _events.isEnabledFor(level):
            _events.log(level, "%s", event, exc_info=error, extra={"fields": {**self._bound, **fields}})


log = EventLog()


def configure_logging(style: LogFormat = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """One handler on standard error for everything, our events and libraries' records. Called once per process."""
    target = stream or sys.stderr
    if style == "auto":
        style = "human" if target.isatty() else "json"
    handler = logging.StreamHandler(target)
    handler.setFormatter(JsonLines() if style == "json" else HumanLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("squall", "squall_bus"):
        logging.getLogger(name).setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return dict(fields) if fields else {}


def _service(record: logging.LogRecord) -> str:
    return current_service.get() or record.name


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, event, service, trace, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "service": _service(record),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class HumanLines(logging.Formatter):
    """`12:03:04.567 info  scheduler  container_placed container=c-1 node=gpu-3`"""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        words = [f"{key}={_word(value)}" for key, value in _fields(record).items()]
        head = f"{at:%H:%M:%S}.{int(record.msecs):03d} {record.levelname.lower():<7} {_service(record):<10}"
        line = " ".join([head, record.getMessage(), *words])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _word(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "\n\t=') else text
