"""Log lines of containers and builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from squall_contracts.envelope import HotMessage


@dataclass(frozen=True)
class LogLines(HotMessage):
    """What a container wrote during one call (or outside calls). Subject `logs.r.ss.<app>.<pool>.<call>`, batched.

    `lines` rows: [unix s, "stdout" | "stderr" | "system", text]. Text keeps its line end and carriage returns."""

    TYPE: ClassVar[str] = "log_lines"

    app: str
    pool: str
    function: str
    container: str
    call: str
    index: int
    lines: list[list[object]]
