"""What changes in a pool's claims when the desired number, its containers or its nodes change."""

from __future__ import annotations

import functools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from squall.spec import CodeRef, FunctionSpec, Resources, ScalingPolicy
from squall_contracts.functions import FunctionRecord, PoolRecord
from squall_contracts.nodes import ClaimState, ContainerClaim
from squall_contracts.scaling import Desired
from squall_scheduler.policy import backoff
from squall_scheduler.policy.claims import Create, Drain, Forget, Note, plan
from squall_scheduler.state import Claim, Cluster, Node, NodeId, Pool, PoolId, Trouble, Usage

NOW = 1000.0
POOL = PoolId("po-1")


def a_cluster(*names: str, silent_s: float = 0.0, cpu_milli: int = 4000) -> Cluster:
    """Nodes of this size; those named with a `-` at the end are silent."""
    nodes = {
        NodeId(name): Node(id=NodeId(name), cpu_milli=cpu_milli, memory_mib=8192, seen_at=NOW - silent_s)
        for name in names or ("node-a",)
    }
    return Cluster(nodes=nodes, heard_since=NOW - 1000)


def a_claim(ordinal: int, state: str = ClaimState.READY, *, node: str = "node-a", at: float = NOW - 60) -> Claim:
    message = ContainerClaim(
        pool=POOL,
        ordinal=ordinal,
        container=f"co-{ordinal}",
        node=node,
        function_id="fu-1",
        app_id="ap-1",
        workspace="main",
        state=state,
        created_at=at,
        updated_at=at,
        cpu=0.125,
        memory_mib=128,
    )
    return Claim(message=message, revision=ordinal + 1)


def a_pool(desired: int, *claims: Claim, max_containers: int | None = None, **given: object) -> Pool:
    spec = FunctionSpec(
        name="f",
        code=CodeRef(bundle_sha256="", module="m", qualname="f"),
        scaling=ScalingPolicy(max_containers=max_containers),
        resources=Resources(),
    )
    record = PoolRecord(pool=POOL, function_id="fu-1", app_id="ap-1", workspace="main")
    function = FunctionRecord(
        function_id="fu-1",
        app_id="ap-1",
        app_name="a",
        workspace="main",
        environment="main",
        version=1,
        ephemeral=False,
        spec=spec,
        created_at=0,
    )
    decision = Desired(pool=POOL, count=desired, reason="", decision="de-1", decided_at=NOW)
    values = {"record": record, "function": function, "desired": decision, "claims": claims, **given}
    return Pool(id=POOL, **values)  # type: ignore[arg-type]


def creates(pool: Pool, cluster: Cluster | None = None) -> list[int]:
    return [a.ordinal for a in plan(pool, cluster or a_cluster(), NOW) if isinstance(a, Create)]


def drains(pool: Pool) -> list[int]:
    return [a.claim.message.ordinal for a in plan(pool, a_cluster(), NOW) if isinstance(a, Drain)]


def note(pool: Pool, cluster: Cluster | None = None) -> Note:
    (found,) = (a for a in plan(pool, cluster or a_cluster(), NOW) if isinstance(a, Note))
    return found


# --- more ------------------------------------------------------------------------------------------------------------


def test_missing_containers_get_the_lowest_free_ordinals() -> None:
    assert creates(a_pool(4, a_claim(0), a_claim(2))) == [1, 3]


def test_a_container_that_is_leaving_keeps_its_ordinal_and_does_not_count() -> None:
    assert creates(a_pool(1, a_claim(0, ClaimState.DRAINING))) == [1]


def test_no_ordinal_reaches_max_containers() -> None:
    assert creates(a_pool(9, max_containers=3)) == [0, 1, 2]
    assert creates(a_pool(3, a_claim(0, ClaimState.DRAINING), max_containers=3)) == [1, 2]


def test_nothing_is_done_for_a_pool_whose_declaration_is_not_known_yet() -> None:
    assert plan(a_pool(2, function=None), a_cluster(), NOW) == []


def test_what_finds_no_room_is_told_with_every_node() -> None:
    cluster = a_cluster("node-a", "node-b", cpu_milli=100)
    told = note(a_pool(2), cluster)
    assert told.missing == 2
    assert set(told.rejected) == {"node-a", "node-b"}
    assert told.message.startswith("no node has room: node-a is too small")


def test_what_fits_is_created_and_the_rest_is_told() -> None:
    cluster = a_cluster(cpu_milli=400)
    pool = a_pool(5)
    assert creates(pool, cluster) == [0, 1, 2]
    assert note(pool, cluster).missing == 2


def test_a_pool_waits_for_the_build_of_its_image() -> None:
    pool = a_pool(1, image="im-1", image_state="building")
    assert creates(pool) == []
    assert note(pool).message == "image im-1 is being built"


# --- fewer -----------------------------------------------------------------------------------------------------------


def test_the_longest_idle_containers_are_drained_first() -> None:
    idle = {"co-0": NOW - 5, "co-1": NOW - 50, "co-2": NOW - 20}
    pool = a_pool(1, *(a_claim(n) for n in range(3)), idle_since=idle)
    assert drains(pool) == [1, 2]


def test_a_busy_container_is_never_drained_nor_one_of_which_nothing_is_known() -> None:
    pool = a_pool(0, a_claim(0), a_claim(1), idle_since={"co-0": 0.0})
    assert drains(pool) == []


def test_what_has_not_started_goes_before_what_is_idle() -> None:
    claims = (a_claim(0), a_claim(1, ClaimState.STARTING), a_claim(2, ClaimState.PROPOSED, at=NOW - 1))
    assert drains(a_pool(1, *claims, idle_since={"co-0": NOW - 100})) == [2, 1]


def test_a_stopped_app_loses_its_busy_containers_too() -> None:
    assert drains(a_pool(1, a_claim(0), stopped=True, idle_since={"co-0": 0.0})) == [0]


# --- what cannot stay ------------------------------------------------------------------------------------------------


def test_refused_and_failed_claims_are_forgotten_and_their_ordinals_free_in_the_next_round() -> None:
    pool = a_pool(2, a_claim(0, ClaimState.REFUSED), a_claim(1, ClaimState.FAILED))
    actions = plan(pool, a_cluster(), NOW)
    assert [a.claim.message.ordinal for a in actions if isinstance(a, Forget)] == [0, 1]
    assert creates(pool) == [2, 3]


def test_the_claims_of_a_lost_node_are_forgotten_and_placed_elsewhere() -> None:
    cluster = a_cluster("node-b")
    cluster = replace(cluster, nodes={**cluster.nodes, **a_cluster("node-a", silent_s=11).nodes})
    actions = plan(a_pool(1, a_claim(0, node="node-a")), cluster, NOW)
    assert [type(a) for a in actions] == [Forget, Create, Note]
    assert isinstance(actions[1], Create)
    assert actions[1].node == "node-b"


def test_a_silent_node_is_not_lost_while_we_could_not_hear_it() -> None:
    cluster = replace(a_cluster("node-a", silent_s=60), heard_since=NOW - 5)
    assert not [a for a in plan(a_pool(1, a_claim(0)), cluster, NOW) if isinstance(a, Forget)]


def test_a_proposal_that_nobody_answers_is_taken_back() -> None:
    pool = a_pool(1, a_claim(0, ClaimState.PROPOSED, at=NOW - 11))
    assert [type(a) for a in plan(pool, a_cluster(), NOW)] == [Forget, Create, Note]


# --- failing starts --------------------------------------------------------------------------------------------------


def test_after_a_failed_start_nothing_is_tried_until_the_pause_is_over() -> None:
    trouble = Trouble(failures=4, failed_at=NOW - 3, reason="import of app failed: ModuleNotFoundError: x")
    pool = a_pool(5, trouble=trouble)
    assert creates(pool) == []
    told = note(pool)
    assert told.message == "import of app failed: ModuleNotFoundError: x; next try in 5 s"
    assert told.retry_at == NOW + 5
    assert told.missing == 5


def test_after_the_pause_one_container_tries_first() -> None:
    trouble = Trouble(failures=1, failed_at=NOW - 2, reason="no")
    assert creates(a_pool(5, trouble=trouble)) == [0]
    assert creates(a_pool(5, a_claim(0, ClaimState.STARTING), trouble=trouble)) == []
    assert creates(a_pool(5, a_claim(0), trouble=replace(trouble, over=True))) == [1, 2, 3, 4]


def test_pauses_double_up_to_a_minute() -> None:
    assert [backoff.pause_s(n) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_containers_that_started_together_and_fail_together_are_one_failure() -> None:
    first = backoff.after_failure(None, started_at=10, now=12, reason="a", user_error=True)
    second = backoff.after_failure(first, started_at=10, now=12.5, reason="b", user_error=True)
    third = backoff.after_failure(second, started_at=13, now=14, reason="c", user_error=True)
    assert (first.failures, second.failures, third.failures) == (1, 1, 2)


def test_killed_starts_end_nothing_while_a_container_is_ready() -> None:
    trouble = Trouble(failures=7, failed_at=NOW - 1, reason="killed by SIGKILL", user_error=False, killed=7)
    assert a_pool(2, a_claim(0, ClaimState.STARTING), trouble=trouble).killed_before == 7
    assert a_pool(2, a_claim(0), trouble=trouble).killed_before == 0
    assert a_pool(2).killed_before == 0


def test_starts_that_are_killed_are_counted_until_one_is_ready_or_its_code_has_a_say() -> None:
    trouble: Trouble | None = None
    for n in range(10):
        at = 60.0 * n
        trouble = backoff.after_failure(
            trouble, started_at=at, now=at + 1, reason="killed by SIGKILL", user_error=False, killed=True
        )
        together = backoff.after_failure(trouble, started_at=at, now=at + 1, reason="x", user_error=False, killed=True)
        assert trouble.killed_before == together.killed_before == n + 1
    assert trouble is not None
    soon = trouble.failed_at + 60
    after = functools.partial(backoff.after_failure, started_at=soon, now=soon + 1, reason="x")
    assert after(trouble, user_error=False).killed_before == 10, "another failure proves nothing"
    assert after(trouble, user_error=True).killed_before == 0
    assert replace(trouble, over=True).killed_before == 0
    assert after(replace(trouble, over=True), user_error=False, killed=True).killed_before == 1
    late = soon + 600
    assert (
        backoff.after_failure(
            trouble, started_at=late, now=late + 1, reason="x", user_error=False, killed=True
        ).killed_before
        == 1
    )


def test_a_failure_long_after_the_last_one_counts_from_the_beginning() -> None:
    old = Trouble(failures=6, failed_at=0, reason="x")
    assert backoff.after_failure(old, started_at=95, now=99, reason="y", user_error=False).failures == 1
    assert backoff.after_failure(old, started_at=80, now=90, reason="y", user_error=False).failures == 7


@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=40))
def test_a_pool_that_fails_at_once_each_time_starts_at_most_six_times_a_minute_in_the_long_run(
    run_times: list[float],
) -> None:
    trouble: Trouble | None = None
    now, starts = 0.0, []
    for run_s in run_times:
        if trouble is not None:
            now = max(now, backoff.retry_at(trouble))
        starts.append(now)
        trouble = backoff.after_failure(trouble, started_at=now, now=now + run_s, reason="x", user_error=False)
        now += run_s
    for start in starts:
        assert sum(start <= other < start + 60 for other in starts) <= 6


# --- any situation ---------------------------------------------------------------------------------------------------

states = st.sampled_from(
    (
        ClaimState.PROPOSED,
        ClaimState.STARTING,
        ClaimState.READY,
        ClaimState.DRAINING,
        ClaimState.REFUSED,
        ClaimState.FAILED,
    )
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Pool, Cluster]:
    ordinals = draw(st.sets(st.integers(0, 8), max_size=7))
    claims = [
        a_claim(
            n, draw(states), node=draw(st.sampled_from(("node-a", "node-b", "gone"))), at=NOW - draw(st.floats(0, 30))
        )
        for n in sorted(ordinals)
    ]
    idle = {claim.message.container: draw(st.sampled_from((0.0, NOW - 10))) for claim in claims if draw(st.booleans())}
    limit = draw(st.none() | st.integers(1, 9))
    pool = a_pool(draw(st.integers(0, 12)), *claims, max_containers=limit, idle_since=idle)
    if draw(st.booleans()):
        trouble = Trouble(failures=draw(st.integers(1, 9)), failed_at=NOW - draw(st.floats(0, 90)), reason="x")
        pool = replace(pool, trouble=replace(trouble, over=draw(st.booleans())))
    cluster = a_cluster("node-a", "node-b", cpu_milli=draw(st.integers(0, 1500)))
    held = {node: Usage() for node in cluster.nodes}
    for claim in claims:
        if claim.holding and claim.node in held:
            held[claim.node] = held[claim.node].plus(125, 128, ())
    nodes = {node: replace(known, used=held[node]) for node, known in cluster.nodes.items()}
    return pool, replace(cluster, nodes=nodes)


@settings(max_examples=40)
@given(situations())
def test_no_plan_makes_two_claims_for_an_ordinal_or_more_containers_than_allowed(given_: tuple[Pool, Cluster]) -> None:
    pool, cluster = given_
    assert pool.function is not None
    actions = plan(pool, cluster, NOW)
    taken = [claim.message.ordinal for claim in pool.claims]
    made = [a.ordinal for a in actions if isinstance(a, Create)]
    assert len(set(taken + made)) == len(taken) + len(made)
    limit = pool.function.spec.scaling.max_containers
    if limit is not None:
        assert all(ordinal < limit for ordinal in made)


@settings(max_examples=40)
@given(situations())
def test_no_plan_goes_past_the_desired_number_or_ends_what_is_busy(given_: tuple[Pool, Cluster]) -> None:
    pool, cluster = given_
    assert pool.desired is not None
    actions = plan(pool, cluster, NOW)
    forgotten = {a.claim.key for a in actions if isinstance(a, Forget)}
    live = [c for c in pool.claims if c.live and c.key not in forgotten]
    made = sum(isinstance(a, Create) for a in actions)
    drained = [a.claim for a in actions if isinstance(a, Drain)]
    assert not (made and drained)
    if made:
        assert len(live) + made <= pool.desired.count
    for claim in drained:
        assert not claim.ready or pool.idle_since.get(claim.message.container, 0.0) > 0
    if drained:
        assert len(live) - len(drained) >= 0


@settings(max_examples=40)
@given(situations())
def test_no_plan_gives_a_node_more_than_it_has(given_: tuple[Pool, Cluster]) -> None:
    pool, cluster = given_
    for node_id, node in cluster.nodes.items():
        made = sum(isinstance(a, Create) and a.node == node_id for a in plan(pool, cluster, NOW))
        assert made == 0 or node.used.cpu_milli + made * 125 <= node.cpu_milli


@settings(max_examples=40)
@given(situations())
def test_whoever_waits_is_told_why(given_: tuple[Pool, Cluster]) -> None:
    pool, cluster = given_
    (told,) = (a for a in plan(pool, cluster, NOW) if isinstance(a, Note))
    assert told.missing == 0 or told.message
    if told.rejected:
        assert set(told.rejected) == set(cluster.nodes)


def test_a_request_for_more_than_any_machine_waits_or_gets_half_of_one() -> None:
    large = a_pool(3)
    assert large.function is not None
    spec = replace(large.function.spec, resources=Resources(cpu=64, memory_mib=1 << 20))
    large = replace(large, function=replace(large.function, spec=spec))
    assert creates(large) == []
    small = replace(a_cluster(), shrink_larger=True)
    assert creates(large, small) == [0, 1]
    needed = small.wanted(large, first=True)
    assert (needed.cpu_milli, needed.memory_mib) == (2000, 4096)
    assert small.wanted(a_pool(1), first=False) == a_pool(1).wanted(first=False)
