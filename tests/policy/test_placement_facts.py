"""What the scheduler knows of claims when its own writes are answered late, by the watch or by the server."""

from __future__ import annotations

import pytest

from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_contracts.scaling import Verdict
from squall_scheduler.facts import Facts
from squall_scheduler.state import Claim, NodeId, PoolId

POOL = PoolId("po-1")
NOW = 1000.0


def a_claim(container: str = "co-1", state: str = ClaimState.PROPOSED) -> ContainerClaim:
    return ContainerClaim(
        pool=POOL,
        ordinal=0,
        container=container,
        node="node-a",
        function_id="fu-1",
        app_id="ap-1",
        workspace="main",
        state=state,
        created_at=NOW,
        updated_at=NOW,
    )


KEY = Claim(message=a_claim(), revision=0).key


def known(facts: Facts) -> list[tuple[str, str]]:
    return [(claim.message.container, claim.message.state) for claim in facts.pool(POOL, NOW).claims]


def test_what_was_written_is_known_before_the_watch_tells_it() -> None:
    facts = Facts()

    facts.claim_written(a_claim(), 10, NOW)

    assert known(facts) == [("co-1", ClaimState.PROPOSED)]
    assert not facts.claim_changed(a_claim(), 10, NOW)


def test_a_claim_that_ended_before_its_write_was_answered_stays_gone() -> None:
    """The answer got lost: the write was repeated, and answered with the number that it has had for seconds."""
    facts = Facts()
    facts.claim_changed(a_claim(), 10, NOW)
    facts.claim_changed(a_claim(state=ClaimState.READY), 11, NOW)
    facts.claim_gone(KEY, 12)

    facts.claim_written(a_claim(), 10, NOW)

    assert known(facts) == []
    assert not facts.machines.pools_on(NodeId("node-a"))


@pytest.mark.parametrize("told", [11, 25])
def test_a_claim_that_the_watch_never_had_stays_gone_too(told: int) -> None:
    """The watch was opened again between the write and the claim's end: it tells only that there is none."""
    facts = Facts()
    facts.claim_gone(KEY, told)

    facts.claim_written(a_claim(), 10, NOW)

    assert known(facts) == []


def test_who_has_the_place_now_is_not_replaced_by_an_answer_about_the_one_before() -> None:
    facts = Facts()
    facts.claim_changed(a_claim("co-2"), 14, NOW)

    facts.claim_written(a_claim("co-1"), 10, NOW)

    assert known(facts) == [("co-2", ClaimState.PROPOSED)]


def test_a_scheduler_that_has_just_started_goes_on_counting_starts_that_were_killed() -> None:
    facts = Facts()
    verdict = Verdict(
        pool=POOL,
        at=NOW,
        missing=1,
        message="killed by SIGKILL; next try in 4 s",
        retry_at=NOW + 4,
        failures=3,
        killed=3,
    )

    facts.verdict_changed(POOL, verdict)

    trouble = facts.pool(POOL, NOW).trouble
    assert trouble is not None
    assert trouble.killed_before == 3
