"""When a part that ended by itself is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0
STABLE_S = 20.0
"""A part that ran this long counts as healthy: its next end is a first one."""


@dataclass(frozen=True, slots=True)
class Restarts:
    """How often a part has ended lately."""

    in_a_row: int = 0

    def after_end(self, ran_for_s: float) -> Restarts:
        """The count once it has ended again."""
        return Restarts(1) if ran_for_s >= STABLE_S else replace(self, in_a_row=self.in_a_row + 1)

    @property
    def delay_s(self) -> float:
        """How long to wait before the next start: 0.1, 0.2, 0.4 ... 5 s."""
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (self.in_a_row - 1)) if self.in_a_row else 0.0
