"""Which idle containers make room for a container that is needed now."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_scheduler.policy.eviction import IDLE_S, MOST, evictions
from squall_scheduler.policy.placement import Placed, place
from squall_scheduler.state import Claim, Cluster, Idle, Node, NodeId, PoolId, Usage, Wanted

NOW = 1000.0


def an_idle(ordinal: int, pool: str = "po-2", *, node: str = "node-a", for_s: float = 10.0) -> Idle:
    message = ContainerClaim(
        pool=pool,
        ordinal=ordinal,
        container=f"co-{pool}-{ordinal}",
        node=node,
        function_id="fu-2",
        app_id="ap-1",
        workspace="main",
        state=ClaimState.READY,
        created_at=0.0,
        updated_at=0.0,
        cpu=0.125,
        memory_mib=128,
    )
    return Idle(claim=Claim(message=message, revision=1), since=NOW - for_s)


def a_cluster(containers: dict[str, int], cpu_milli: int = 1000) -> Cluster:
    """Nodes that hold so many containers of the default size."""
    nodes = {}
    for name, number in containers.items():
        used = Usage(cpu_milli=125 * number, memory_mib=128 * number, containers=number)
        nodes[NodeId(name)] = Node(id=NodeId(name), cpu_milli=cpu_milli, memory_mib=8192, seen_at=NOW, used=used)
    return Cluster(nodes=nodes)


def wanted(cpu_milli: int = 125, *, first: bool = True) -> Wanted:
    return Wanted(
        pool=PoolId("po-1"),
        function_id="fu-1",
        image="",
        isolation="process",
        cpu_milli=cpu_milli,
        memory_mib=128,
        first=first,
    )


def ended(want: Wanted, number: int, cluster: Cluster, idle: list[Idle], spare: int = 99) -> list[int]:
    pools = {PoolId(each.claim.message.pool): spare for each in idle}
    return [v.claim.message.ordinal for v in evictions(want, number, cluster, idle, pools, NOW)]


def test_the_longest_idle_container_makes_room() -> None:
    idle = [an_idle(0, for_s=5), an_idle(1, for_s=50), an_idle(2, for_s=20)]
    assert ended(wanted(), 1, a_cluster({"node-a": 8}), idle) == [1]


def test_as_many_make_room_as_are_needed() -> None:
    idle = [an_idle(n, for_s=10 + n) for n in range(8)]
    assert ended(wanted(), 3, a_cluster({"node-a": 8}), idle) == [7, 6, 5]
    assert ended(wanted(cpu_milli=500), 1, a_cluster({"node-a": 8}), idle) == [7, 6, 5, 4]


def test_the_node_where_the_fewest_must_go_is_chosen() -> None:
    idle = [an_idle(n, node="node-a") for n in range(4)] + [an_idle(n + 4, node="node-b") for n in range(4)]
    assert ended(wanted(cpu_milli=500), 1, a_cluster({"node-a": 8, "node-b": 6}), idle) == [4, 5]


def test_nothing_goes_when_there_is_room_or_when_it_comes() -> None:
    assert ended(wanted(), 1, a_cluster({"node-a": 7}), [an_idle(0)]) == []


def test_nothing_goes_when_it_would_not_help() -> None:
    assert ended(wanted(cpu_milli=2000), 1, a_cluster({"node-a": 8}), [an_idle(n) for n in range(8)]) == []


def test_what_became_idle_just_now_stays_a_little() -> None:
    idle = [an_idle(0, for_s=0.5)]
    assert ended(wanted(first=True), 1, a_cluster({"node-a": 8}), idle) == [0]
    assert ended(wanted(first=False), 1, a_cluster({"node-a": 8}), [an_idle(n, for_s=0.5) for n in range(8)]) == []


def test_a_pool_keeps_its_min_containers_and_its_own_ones_do_not_make_room_for_itself() -> None:
    idle = [an_idle(0), an_idle(1)]
    assert ended(wanted(), 2, a_cluster({"node-a": 8}), idle, spare=1) == [0]
    assert ended(wanted(), 1, a_cluster({"node-a": 8}), [an_idle(0, pool="po-1")]) == []


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Wanted, int, Cluster, list[Idle], dict[PoolId, int]]:
    names = draw(st.lists(st.sampled_from(("node-a", "node-b", "node-c")), min_size=1, max_size=3, unique=True))
    idle = [
        an_idle(n, draw(st.sampled_from(("po-1", "po-2", "po-3"))), node=draw(st.sampled_from(names)), for_s=age)
        for n, age in enumerate(draw(st.lists(st.floats(0.0, 5.0), max_size=12)))
    ]
    here = Counter(each.claim.message.node for each in idle)
    cluster = a_cluster({name: here[name] + draw(st.integers(0, 8)) for name in names}, draw(st.integers(500, 3000)))
    spare = {PoolId(pool): draw(st.integers(0, 4)) for pool in ("po-1", "po-2", "po-3")}
    want = wanted(draw(st.integers(50, 600)), first=draw(st.booleans()))
    return want, draw(st.integers(1, 20)), cluster, idle, spare


@settings(max_examples=60)
@given(scenes())
def test_no_eviction_is_in_vain_or_against_the_rules(
    scene: tuple[Wanted, int, Cluster, list[Idle], dict[PoolId, int]],
) -> None:
    want, number, cluster, idle, spare = scene
    victims = evictions(want, number, cluster, idle, spare, NOW)
    keys = [victim.claim.key for victim in victims]
    assert len(set(keys)) == len(keys) <= MOST
    for pool, lost in Counter(victim.claim.message.pool for victim in victims).items():
        assert pool != want.pool
        assert lost <= spare[PoolId(pool)]
    if not want.first:
        assert all(NOW - victim.since >= IDLE_S for victim in victims)
    for victim in victims:
        cluster = cluster.without_container(victim.claim)
    if victims:
        assert isinstance(place(want, cluster, NOW), Placed)
