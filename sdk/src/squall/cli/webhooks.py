"""`squall webhook`: what was delivered and what was not, dead ones again, the key that signs them."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any, Optional

from squall import ids
from squall.cli import table
from squall.cli.server import for_command
from squall.client import query
from squall.errors import UsageError
from squall.http_api.routes import Route
from squall.http_api.webhooks import WebhookInfo, WebhookSecret
from squall.spec import from_wire

COLUMNS = (
    ("CALL", "name"),
    ("EVENT", "event"),
    ("FUNCTION", "function"),
    ("STATE", "state"),
    ("TRIES", "tries"),
    ("NEXT", "next"),
    ("URL", "url"),
    ("LAST", "last"),
)
PAGE = 1000


def list_webhooks(*, state: str, limit: int, as_json: bool) -> int:
    """Prints deliveries, the newest first."""
    with for_command() as session:
        answer = session.client.json("GET", query(Route.WEBHOOKS, state=state or None, limit=limit))
    return _show(answer, "No webhooks." if not state else f"No webhooks are {state}.", as_json=as_json)


def get(call: str, *, as_json: bool) -> int:
    """Prints the deliveries of one call, with what came of the last tries."""
    with for_command() as session:
        answer = session.client.json("GET", Route.WEBHOOKS_OF_CALL.format(call=ids.check_call_id(call)))
    if as_json:
        return _show(answer, "", as_json=True)
    for each in _infos(answer):
        sys.stdout.write(f"{_name(each)}  {each.event}  {each.state}  {each.url}\n")
        for tried in each.recent:
            sys.stdout.write(f"  {table.ago(tried['at'])}  {tried['what']} ({tried['took_s']:.2f} s)\n")
    return 0


def redrive(call: Optional[str], *, every: bool) -> int:
    """Has dead ones tried again."""
    if every == bool(call):
        raise UsageError("redrive takes either a call or --all", fix="`squall webhook redrive fc-...`, or with --all.")
    again: set[tuple[str, int]] = set()
    with for_command() as session:
        while True:
            body = {"call": ids.check_call_id(call) if call else "", "limit": PAGE}
            some = _infos(session.client.json("POST", Route.WEBHOOKS_REDRIVE, body))
            fresh = {(each.call, each.index) for each in some} - again  # others have failed again already
            again |= fresh
            if call or len(some) < PAGE or not fresh:
                break
    sys.stdout.write(f"✓ {len(again)} webhook{'' if len(again) == 1 else 's'} will be tried again.\n")
    return 0


def secret(*, rotate: bool, as_json: bool) -> int:
    """Prints the key that receivers verify signatures with; with `rotate` a new one."""
    with for_command() as session:
        method, path = ("POST", Route.WEBHOOK_SECRET_ROTATE) if rotate else ("GET", Route.WEBHOOK_SECRET)
        found = from_wire(WebhookSecret, session.client.json(method, path))
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found), indent=2) + "\n")
        return 0
    sys.stdout.write(f"{found.secret}\n")
    if rotate:
        sys.stderr.write("✓ Requests are signed with the key before as well for 24 h: give receivers the new one.\n")
    return 0


def _infos(answer: Any) -> list[WebhookInfo]:
    return [from_wire(WebhookInfo, row) for row in answer["deliveries"]]


def _show(answer: Any, empty: str, *, as_json: bool) -> int:
    rows = [dataclasses.asdict(each) if as_json else _row(each) for each in _infos(answer)]
    table.show(rows, COLUMNS, as_json=as_json, empty=empty)
    return 0


def _row(info: WebhookInfo) -> dict[str, Any]:
    left_s = info.next_at - time.time()
    soon = "now" if left_s <= 0 else f"in {left_s:.0f} s" if left_s < 120 else f"in {left_s / 60:.0f} min"
    return {
        **dataclasses.asdict(info),
        "name": _name(info),
        "next": soon if info.state == "pending" else "",
        "last": info.recent[0]["what"] if info.recent else "",
    }


def _name(info: WebhookInfo) -> str:
    """The input as it is shown: the index only where there are several."""
    return f"{info.call}[{info.index}]" if info.index else info.call
