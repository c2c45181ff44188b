"""The reason why inputs of a pool wait, as far as this gateway sees it."""

from __future__ import annotations

from dataclasses import dataclass

from squall_gateway.fleet import Fleet
from squall_gateway.policy.waiting import PoolView, explain


@dataclass(frozen=True, slots=True)
class Waiting:
    """Asks the fleet's view, and puts it into words."""

    fleet: Fleet

    def text(self, pool: str) -> str:
        """One sentence; empty when the pool is not known."""
        if not pool:
            return ""
        verdict, desired = self.fleet.verdicts.get(pool), self.fleet.desired.get(pool)
        view = PoolView(
            verdict="" if verdict is None else verdict.message,
            claims=[(claim.state, claim.reason) for claim in self.fleet.claims_of(pool)],
            desired=None if desired is None else desired.count,
        )
        return explain(view)
