"""Who gives a busy container back when all room is taken."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_scheduler.policy.sharing import Seeker, may_give_way, shares
from squall_scheduler.state import Claim, Cluster, Node, NodeId, PoolId, Wanted


def a_claim(ordinal: int, pool: str = "po-a", workspace: str = "a", state: str = ClaimState.READY) -> Claim:
    message = ContainerClaim(
        pool=pool,
        ordinal=ordinal,
        container=f"co-{pool}-{ordinal}",
        node="node-1",
        function_id="fu-1",
        app_id="ap-1",
        workspace=workspace,
        state=state,
        created_at=0.0,
        updated_at=0.0,
        cpu=1.0,
        memory_mib=128,
    )
    return Claim(message=message, revision=1)


def seeks(workspace: str = "b", pool: str = "po-b", *, first: bool = False) -> Seeker:
    return Seeker(
        workspace=workspace,
        wanted=Wanted(
            pool=PoolId(pool),
            function_id="fu-2",
            image="",
            isolation="process",
            cpu_milli=1000,
            memory_mib=128,
            first=first,
        ),
    )


def a_cluster(cpu_milli: int = 8000) -> Cluster:
    return Cluster(nodes={NodeId("node-1"): Node(id=NodeId("node-1"), cpu_milli=cpu_milli, memory_mib=65536)})


def gives(seeker: Seeker, claims: list[Claim], cluster: Cluster | None = None) -> list[str]:
    cluster = cluster or a_cluster()
    return [each.claim.key for each in may_give_way(seeker, claims, shares(claims, cluster), cluster)]


def test_the_share_is_that_of_the_scarcest() -> None:
    claims = [a_claim(0), a_claim(1), a_claim(2, state=ClaimState.DRAINING)]
    held = shares(claims, a_cluster())
    assert held.of("a") == 2 / 8
    assert held.of("nobody") == 0


def test_a_pool_with_several_gives_one_to_a_pool_without_any_also_in_its_own_workspace() -> None:
    claims = [a_claim(n) for n in range(3)]
    assert gives(seeks("a", first=True), claims) == [claim.key for claim in claims]
    assert gives(seeks("a", first=False), claims) == []


def test_a_pool_with_one_keeps_it() -> None:
    assert gives(seeks("a", first=True), [a_claim(0)]) == []
    assert gives(seeks("b", first=True), [a_claim(0)], a_cluster(1000)) == []


def test_workspaces_are_evened_out_and_not_turned_around() -> None:
    many = [a_claim(n) for n in range(6)]
    few = [a_claim(n, "po-b", "b") for n in range(2)]
    assert gives(seeks("b"), many + few) == [claim.key for claim in many]
    even = [a_claim(n) for n in range(4)] + [a_claim(n, "po-b", "b") for n in range(4)]
    assert gives(seeks("b"), even) == []
    assert gives(seeks("a", "po-a"), even) == []


def test_what_is_starting_or_leaving_is_not_asked() -> None:
    claims = [a_claim(n, state=state) for n, state in enumerate((ClaimState.STARTING, ClaimState.DRAINING))]
    assert gives(seeks("b", first=True), claims) == []


def test_free_room_is_for_first_ones_then_for_who_has_least() -> None:
    held = shares([a_claim(n) for n in range(3)] + [a_claim(0, "po-b", "b")], a_cluster())
    assert seeks("a", first=True).precedes(seeks("b"), held)
    assert not seeks("b").precedes(seeks("a", first=True), held)
    assert seeks("b").precedes(seeks("a", "po-a"), held)
    assert not seeks("b").precedes(seeks("b", "po-c"), held)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(("a", "b", "c")), min_size=1, max_size=12), st.sampled_from(("a", "b", "c")))
def test_giving_way_never_goes_back_and_forth(owners: list[str], seeker: str) -> None:
    """Who gave to even things out would not be given it back."""
    claims = [a_claim(n, f"po-{owner}", owner) for n, owner in enumerate(owners)]
    cluster = a_cluster(1000 * len(owners))
    for given_up in may_give_way(seeks(seeker, "po-new"), claims, shares(claims, cluster), cluster):
        giver = given_up.claim.message.workspace
        after = [claim for claim in claims if claim is not given_up.claim] + [a_claim(99, "po-new", seeker)]
        back = gives(seeks(giver, f"po-{giver}"), after, cluster)
        assert not [key for key in back if key.startswith("po-new")]
