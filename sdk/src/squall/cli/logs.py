"""`squall logs`: what containers wrote, as they wrote it; standard output to standard output, errors to errors."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime
from typing import NamedTuple, Optional

from squall import ids
from squall.cli import lookup
from squall.cli.server import for_command
from squall.errors import UsageError
from squall.http_api.calls import CallSummary
from squall.http_api.routes import Route
from squall.http_api.traces import LogEntry
from squall.logs import Wanted, entries
from squall.spec import from_wire

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Before(NamedTuple):
    """What stands before each line."""

    time: bool = False
    function: bool = False
    call: bool = False
    container: bool = False

    def of(self, entry: LogEntry) -> str:
        """The words for a line, each with a blank behind it; `-` where there is none."""
        words = []
        if self.time:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.at))
            words.append(f"{moment}.{int(entry.at % 1 * 1000):03d}")
        shown = ((self.function, entry.function), (self.call, entry.call), (self.container, entry.container))
        words += [text or "-" for wanted, text in shown if wanted]
        return "".join(f"{word} " for word in words)


def logs(name: str, wanted: Wanted, *, follow: bool, before: Before, environment: Optional[str], as_json: bool) -> int:
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
        for entry in found:
            _print(entry, before, as_json)
    return 0


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


def _print(entry: LogEntry, before: Before, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(asdict(entry)) + "\n")
        return
    out = sys.stderr if entry.stream == "stderr" else sys.stdout
    out.write(before.of(entry) + entry.text)
    out.flush()
