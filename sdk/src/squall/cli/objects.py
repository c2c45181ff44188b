"""`squall dict` and `squall queue`: what is in them, and removing it."""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any, Callable, Optional

from squall.cli import table
from squall.cli.server import for_command
from squall.client import query
from squall.dict import Dict
from squall.errors import NotFoundError, UsageError
from squall.objects import path_of
from squall.queue import Queue
from squall.volume import Volume

COLUMNS = (("NAME", "name"), ("ID", "id"), ("MADE", "made"))
OWNERS: dict[str, Any] = {"dict": Dict, "queue": Queue, "volume": Volume}
SHOWN_CHARACTERS = 200


def create(what: str, name: str, *, environment: Optional[str]) -> int:
    """Makes an empty one."""
    with for_command():
        OWNERS[what].objects.create(name, environment_name=environment)
    sys.stdout.write(f"✓ Made {what} {name}. In a program: squall.{what.capitalize()}.from_name({name!r})\n")
    return 0


def list_objects(what: str, *, environment: Optional[str], as_json: bool) -> int:
    """Prints those with names."""
    with for_command() as session:
        path = query(path_of(f"{what.upper()}S", ""), environment=environment or session.environment)
        rows = session.client.json("GET", path)["objects"]
    rows.sort(key=lambda row: row["name"])
    if not as_json:
        for row in rows:
            row.update(made=table.ago(row["created_at"]))
    table.show(rows, COLUMNS, as_json=as_json, empty=f"No {what}s.")
    return 0


def delete(what: str, name: str, *, yes: bool, allow_missing: bool = False, environment: Optional[str]) -> int:
    """Removes one with all that is in it."""
    _confirm(f"Delete {what} {name} with all that is in it?", yes)
    with for_command():
        try:
            OWNERS[what].objects.delete(name, environment_name=environment)
        except NotFoundError:
            if not allow_missing:
                raise
            sys.stdout.write(f"There is no {what} {name}.\n")
            return 0
    sys.stdout.write(f"✓ Deleted {what} {name}.\n")
    return 0


def get(name: str, key: str, *, environment: Optional[str]) -> int:
    """Prints the value of a key."""
    with for_command():
        found = Dict.from_name(name, environment_name=environment).get(key, _MISSING)
    if found is _MISSING:
        raise NotFoundError(f"dict {name!r} has no key {key!r}", fix=f"`squall dict items {name}` shows keys.")
    sys.stdout.write(f"{found}\n" if isinstance(found, str) else f"{found!r}\n")
    return 0


def items(name: str, number: Optional[int], *, as_repr: bool = False, environment: Optional[str], as_json: bool) -> int:
    """Prints keys and values."""
    with for_command():
        found = list(itertools.islice(Dict.from_name(name, environment_name=environment).items(), number))
    show: Callable[[Any], Any] = repr if as_repr else lambda value: _shown(value, as_json)
    rows = [{"key": show(key), "value": show(value)} for key, value in found]
    table.show(rows, (("KEY", "key"), ("VALUE", "value")), as_json=as_json, empty="No keys.")
    return 0


def clear_dict(name: str, *, yes: bool, environment: Optional[str]) -> int:
    """Removes all keys."""
    _confirm(f"Remove all keys of dict {name}?", yes)
    with for_command():
        Dict.from_name(name, environment_name=environment).clear()
    sys.stdout.write(f"✓ Cleared dict {name}.\n")
    return 0


def peek(name: str, number: int, *, partition: Optional[str], environment: Optional[str]) -> int:
    """Prints the first items."""
    with for_command():
        queue = Queue.from_name(name, environment_name=environment)
        for item in itertools.islice(queue.iterate(partition=partition), number):
            sys.stdout.write(f"{item!r}\n")
    return 0


def length(name: str, *, partition: Optional[str], total: bool, environment: Optional[str]) -> int:
    """Prints how many items there are."""
    with for_command():
        counted = Queue.from_name(name, environment_name=environment).len(partition=partition, total=total)
    sys.stdout.write(f"{counted}\n")
    return 0


def clear_queue(name: str, *, partition: Optional[str], everything: bool, yes: bool, environment: Optional[str]) -> int:
    """Removes items."""
    _confirm(f"Remove items of queue {name}?", yes)
    with for_command():
        Queue.from_name(name, environment_name=environment).clear(partition=partition, all=everything)
    sys.stdout.write(f"✓ Cleared queue {name}.\n")
    return 0


_MISSING = object()


def _shown(value: Any, as_json: bool) -> Any:
    if as_json:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            return repr(value)
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this removes data, and nobody can be asked here", fix="Add --yes.")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was removed", fix="Answer y, or add --yes.")
