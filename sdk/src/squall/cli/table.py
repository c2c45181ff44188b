"""Lists as an aligned table for people, or as JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Optional

Column = tuple[str, str]
"""Heading and the key of the row."""


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """Prints rows; JSON has every key of them, the table the named columns."""
    if as_json:
        sys.stdout.write(json.dumps([dict(row) for row in rows], indent=2, default=str) + "\n")
        return
    if not rows:
        sys.stdout.write(empty + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(key))) for _, key in columns))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)


def cell(value: Any) -> str:
    """A value as text in a table."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def duration(seconds: float) -> str:
    """About how long: `40 s`, `5 min`, `3 h`, `12 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(moment: Optional[float], now: Optional[float] = None) -> str:
    """How long ago a moment (seconds since 1970) was."""
    if not moment:
        return "-"
    return duration(max(0.0, (time.time() if now is None else now) - moment)) + " ago"
