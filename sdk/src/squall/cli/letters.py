"""`squall call list --failed` and `squall call redrive`: dead letters."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any, Optional

from squall import ids
from squall.cli import lookup, table
from squall.cli.server import for_command
from squall.client import Client, query
from squall.errors import UsageError
from squall.http_api.calls import LetterInfo, Redrives
from squall.http_api.routes import Route
from squall.spec import from_wire

COLUMNS = (
    ("CALL", "name"),
    ("FUNCTION", "function"),
    ("VERSION", "version"),
    ("STATE", "outcome"),
    ("FAILED", "failed"),
    ("REDRIVEN TO", "redriven_to"),
    ("ERROR", "error"),
)
PAGE = 1000


def list_failed(
    *, app: Optional[str], environment: Optional[str], since_s: Optional[float], limit: int, as_json: bool
) -> int:
    """Prints spawned calls that failed, timed out or expired, the last ones first."""
    with for_command() as session:
        app_id = lookup.app(session.client, app, environment).app_id if app else None
        answer = session.client.json("GET", query(Route.LETTERS, app=app_id, since=_moment(since_s), limit=limit))
    found = [from_wire(LetterInfo, row) for row in answer["letters"]]
    rows = [dataclasses.asdict(letter) if as_json else _row(letter) for letter in found]
    table.show(rows, COLUMNS, as_json=as_json, empty="No failed calls.")
    left = int(answer["total"]) - len(found)
    if left > 0 and not as_json:
        sys.stdout.write(f"{left} more; --limit and --since say which are shown.\n")
    return 0


def redrive(
    call: Optional[str], *, every: bool, app: Optional[str], environment: Optional[str], since_s: Optional[float]
) -> int:
    """Makes new calls of dead letters."""
    if every == bool(call) or (call and (app or since_s is not None)):
        raise UsageError(
            "redrive takes either a call or --all",
            fix="`squall call redrive fc-...`, or `squall call redrive --all --app APP --since 1h`.",
        )
    with for_command() as session:
        if call:
            path = Route.CALL_REDRIVE.format(call=ids.check_call_id(call))
            pages = [from_wire(Redrives, session.client.json("POST", path))]
        else:
            app_id = lookup.app(session.client, app, environment).app_id if app else ""
            pages = _all(session.client, app_id, _moment(since_s) or 0.0)
    redriven = [each for page in pages for each in page.redriven]
    refused = [each for page in pages for each in page.refused]
    for each in redriven:
        sys.stdout.write(f"{_name(each.call, each.index)} -> {each.into}\n")
    for problem in refused:
        told = f"{problem.error.get('message')}. {problem.error.get('fix')}"
        sys.stderr.write(f"{_name(problem.call, problem.index)}: {told}\n")
    sys.stdout.write(f"Redrove {len(redriven)} input{'s' if len(redriven) != 1 else ''}")
    sys.stdout.write(f", {len(refused)} refused.\n" if refused else ".\n")
    return 1 if refused else 0


def _all(client: Client, app_id: str, since: float) -> list[Redrives]:
    pages: list[Redrives] = []
    while not pages or pages[-1].cursor:
        body = {"app": app_id, "since": since, "limit": PAGE, "cursor": pages[-1].cursor if pages else ""}
        pages.append(from_wire(Redrives, client.json("POST", Route.LETTERS_REDRIVE, body)))
    return pages


def _moment(age_s: Optional[float]) -> Optional[float]:
    return None if age_s is None else time.time() - age_s


def _row(letter: LetterInfo) -> dict[str, Any]:
    shown = {**dataclasses.asdict(letter), "failed": table.ago(letter.failed_at)}
    return {**shown, "name": _name(letter.call, letter.index)}


def _name(call: str, index: int) -> str:
    """The input as it is shown: the index only where there are several."""
    return f"{call}[{index}]" if index else call
