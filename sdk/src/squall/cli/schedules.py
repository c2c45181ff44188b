"""`squall schedule`: lists schedules, runs one now, pauses and resumes them."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any, Optional

from squall.cli import table
from squall.cli.server import for_command
from squall.client import query
from squall.errors import NotFoundError
from squall.http_api.routes import Route
from squall.http_api.schedules import ScheduleInfo
from squall.ids import new_call_id
from squall.session import Session
from squall.spec import from_wire

COLUMNS = (
    ("APP", "app"),
    ("FUNCTION", "function"),
    ("WHEN", "when"),
    ("NEXT", "next"),
    ("CALLED", "called"),
    ("MISSED", "missed"),
    ("LAST CALL", "last"),
)


def list_schedules(*, app: Optional[str], environment: Optional[str], as_json: bool) -> int:
    """Prints schedules."""
    with for_command() as session:
        found = [each for each in _all(session, environment) if app in (None, each.app, each.app_id)]
    rows = [dataclasses.asdict(each) for each in found]
    if not as_json:
        for row in rows:
            calls = [line["call"] for line in row["recent"] if line["call"]]
            row.update(next=_in_words(row), last=calls[0] if calls else "")
    table.show(rows, COLUMNS, as_json=as_json, empty="No schedules.")
    return 0


def run_now(app: str, function: str, *, environment: Optional[str], as_json: bool) -> int:
    """Calls the function of a schedule now."""
    with for_command() as session:  # the id is made here: a request that is sent again makes no second call
        call = new_call_id(session.client.info().shards)
    answer = _post("SCHEDULE_RUN", app, function, environment, call=call)
    told = f"✓ Called {function} of {app}: {answer['call']}. `squall call get {answer['call']}` shows how it ends.\n"
    return _told(answer, told, as_json)


def pause(app: str, function: str, *, environment: Optional[str], as_json: bool) -> int:
    """Stops the ticks of a schedule until it is resumed."""
    answer = _post("SCHEDULE_PAUSE", app, function, environment)
    return _told(
        answer, f"✓ Paused {function} of {app}. `squall schedule resume {app} {function}` ends that.\n", as_json
    )


def resume(app: str, function: str, *, environment: Optional[str], as_json: bool) -> int:
    """Lets a schedule tick again."""
    return _told(_post("SCHEDULE_RESUME", app, function, environment), f"✓ Resumed {function} of {app}.\n", as_json)


def _post(route: str, app: str, function: str, environment: Optional[str], **asked: str) -> Any:
    with for_command() as session:
        matching = [s for s in _all(session, environment) if app in (s.app, s.app_id) and s.function == function]
        if not matching:
            raise NotFoundError(
                f"there is no schedule of function {function!r} in app {app!r}",
                fix="`squall schedule list` shows those that are.",
            )
        path: str = getattr(Route, route)
        return session.client.json("POST", query(path.format(schedule=matching[-1].id), **asked))


def _all(session: Session, environment: Optional[str]) -> list[ScheduleInfo]:
    answer = session.client.json("GET", query(Route.SCHEDULES, environment=environment or session.environment))
    return [from_wire(ScheduleInfo, row) for row in answer["schedules"]]


def _in_words(row: dict[str, Any]) -> str:
    if row["paused"]:
        return "paused"
    left_s = row["next_tick"] - time.time()
    if not row["next_tick"]:
        return "never"
    return "now" if left_s <= 0 else f"in {table.duration(left_s)}"


def _told(answer: Any, text: str, as_json: bool) -> int:
    sys.stdout.write(json.dumps(answer, indent=2) + "\n" if as_json else text)
    return 0
