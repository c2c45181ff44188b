"""What attempts used: closed intervals for the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from squall_contracts.envelope import HotMessage


@dataclass(frozen=True)
class UsageIntervals(HotMessage):
    """Attempts of one function that ended on one node, batched. Subject `usage.r.<function>`; owner: agent.

    `intervals` rows: [call, index, attempt, container, started_at, ended_at, outcome]; the pair (call, index) and the
    attempt identify a row, so that a repeated message changes no sum."""

    TYPE: ClassVar[str] = "usage_intervals"

    function: str
    app: str
    workspace: str
    node: str
    cpu: float
    memory_mib: int
    gpus: list[str] = field(default_factory=list)
    intervals: list[list[Any]] = field(default_factory=list)
