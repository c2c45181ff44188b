"""Placement: where a container goes, and what is said when it can go nowhere."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from squall.spec import GpuRequest
from squall_scheduler.policy.placement import NoRoom, Placed, place, place_many
from squall_scheduler.policy.wording import describe_gpus
from squall_scheduler.state import Cluster, Gpu, Node, NodeId, PoolId, Refusal, Usage, Wanted, milli

NOW = 1000.0


def a_node(name: str = "node-a", **given: object) -> Node:
    values: dict[str, object] = {"cpu_milli": 4000, "memory_mib": 8192, "seen_at": NOW, **given}
    gpus = tuple(Gpu(uuid=f"{name}-{n}", type=kind) for n, kind in enumerate(values.pop("gpus", ())))  # type: ignore[arg-type, var-annotated]
    return Node(id=NodeId(name), gpus=gpus, **values)  # type: ignore[arg-type]


def a_cluster(*nodes: Node) -> Cluster:
    return Cluster(nodes={node.id: node for node in nodes})


def wanted(**given: object) -> Wanted:
    values: dict[str, object] = {
        "pool": PoolId("po-1"),
        "function_id": "fu-1",
        "image": "im-1",
        "isolation": "process",
        "cpu_milli": 125,
        "memory_mib": 128,
        **given,
    }
    return Wanted(**values)  # type: ignore[arg-type]


def placed_on(want: Wanted, *nodes: Node) -> str:
    verdict = place(want, a_cluster(*nodes), NOW)
    assert isinstance(verdict, Placed), verdict
    return verdict.node


def refusals(want: Wanted, *nodes: Node) -> dict[str, str]:
    verdict = place(want, a_cluster(*nodes), NOW)
    assert isinstance(verdict, NoRoom), verdict
    return {str(node): reason for node, reason in verdict.rejected.items()}


def used(cpu: int = 0, memory: int = 0, containers: int = 0, gpus: tuple[str, ...] = ()) -> Usage:
    return Usage(cpu_milli=cpu, memory_mib=memory, containers=containers, gpus=frozenset(gpus))


# --- examples --------------------------------------------------------------------------------------------------------


def test_the_emptier_of_two_equal_nodes_is_taken() -> None:
    assert placed_on(wanted(), a_node("node-a", used=used(cpu=1000, containers=1)), a_node("node-b")) == "node-b"


def test_equal_nodes_are_taken_in_the_order_of_their_names() -> None:
    assert placed_on(wanted(), a_node("node-b"), a_node("node-a")) == "node-a"


def test_a_node_with_the_image_is_preferred_until_it_is_a_quarter_fuller() -> None:
    warm = a_node("node-b", images=frozenset({"im-1"}), templates=frozenset({"fu-1"}))
    assert placed_on(wanted(), a_node("node-a"), warm) == "node-b"
    busy = replace(warm, used=used(cpu=2000, containers=10))
    assert placed_on(wanted(), a_node("node-a"), busy) == "node-a"


def test_a_node_without_gpus_is_preferred_for_what_needs_none() -> None:
    assert placed_on(wanted(), a_node("node-a", gpus=("H100",)), a_node("node-b", used=used(cpu=2000))) == "node-b"


def test_gpu_choices_are_tried_in_their_order() -> None:
    want = wanted(gpus=(GpuRequest("H100"), GpuRequest("A10")))
    assert placed_on(want, a_node("node-a", gpus=("A10",)), a_node("node-b", gpus=("H100",))) == "node-b"
    assert placed_on(want, a_node("node-a", gpus=("A10",)), a_node("node-b", gpus=("T4",))) == "node-a"


def test_a_better_type_satisfies_a_request_unless_it_is_exact() -> None:
    better = a_node("node-a", gpus=("H200",))
    assert placed_on(wanted(gpus=(GpuRequest("h100"),)), better) == "node-a"
    assert refusals(wanted(gpus=(GpuRequest("H100", exact=True),)), better) == {"node-a": "has no H100 (but 1 H200)"}


def test_the_type_asked_for_is_preferred_to_an_upgrade() -> None:
    asked, better = a_node("node-b", gpus=("H100",), used=used(cpu=3000)), a_node("node-a", gpus=("H200",))
    assert placed_on(wanted(gpus=(GpuRequest("H100"),)), asked, better) == "node-b"


def test_any_takes_what_there_is_but_of_one_type() -> None:
    mixed = a_node("node-a", gpus=("L4", "H100", "H100"))
    verdict = place(wanted(gpus=(GpuRequest("ANY", count=2),)), a_cluster(mixed), NOW)
    assert isinstance(verdict, Placed)
    assert verdict.gpus == ("node-a-1", "node-a-2")
    assert refusals(wanted(gpus=(GpuRequest("ANY", count=3),)), mixed) == {"node-a": "has only 2 GPUs, 3 are needed"}


def test_an_a100_of_40_gb_is_an_a100_and_one_of_80_gb_an_upgrade() -> None:
    small, large = a_node("node-b", gpus=("A100-40GB",)), a_node("node-a", gpus=("A100-80GB",))
    assert placed_on(wanted(gpus=(GpuRequest("A100"),)), small, large) == "node-b"
    assert placed_on(wanted(gpus=(GpuRequest("A100"),)), large) == "node-a"
    assert placed_on(wanted(gpus=(GpuRequest("A100", exact=True),)), small) == "node-b"
    assert refusals(wanted(gpus=(GpuRequest("A100", exact=True),)), large) == {
        "node-a": "has no A100 (but 1 A100-80GB)"
    }


def test_a_device_in_trouble_is_not_assigned_and_the_reason_says_so() -> None:
    lost = Gpu(uuid="node-a-1", type="H100", trouble="is lost")
    node = replace(a_node("node-a"), gpus=(Gpu(uuid="node-a-0", type="H100"), lost))
    assert placed_on(wanted(gpus=(GpuRequest("H100"),)), node) == "node-a"
    assert refusals(wanted(gpus=(GpuRequest("H100", count=2),)), node) == {
        "node-a": "can give 1 of 2 H100: node-a-1 is lost"
    }
    busy = replace(node, used=used(gpus=("node-a-0",)))
    assert refusals(wanted(gpus=(GpuRequest("H100"),)), busy) == {"node-a": "is full (needs 1 H100, 0 free)"}


def test_an_impossible_request_says_what_each_node_lacks() -> None:
    nodes = (a_node("cpu-1"), a_node("gpu-1", gpus=("L4",) * 4), a_node("gpu-2", gpus=("H100",) * 4))
    verdict = place(wanted(gpus=(GpuRequest("H100", count=8),)), a_cluster(*nodes), NOW)
    assert isinstance(verdict, NoRoom)
    assert verdict.message == (
        "no node offers 8 H100: gpu-2 has only 4 H100, 8 are needed; cpu-1 has no GPU; gpu-1 has no H100 (but 4 L4)"
    )


def test_what_must_stay_is_never_on_a_preemptible_node() -> None:
    spot, firm = a_node("node-a", preemptible=True), a_node("node-b", used=used(cpu=3800))
    assert placed_on(wanted(), spot, firm) == "node-a"
    assert placed_on(wanted(nonpreemptible=True), spot, firm) == "node-b"
    assert "preemptible" in refusals(wanted(nonpreemptible=True), spot)["node-a"]


def test_the_devices_that_are_assigned_are_free_ones() -> None:
    node = a_node("node-a", gpus=("H100", "H100", "H100"), used=used(gpus=("node-a-1",)))
    verdict = place(wanted(gpus=(GpuRequest("H100", count=2),)), a_cluster(node), NOW)
    assert isinstance(verdict, Placed)
    assert verdict.gpus == ("node-a-0", "node-a-2")


def test_a_function_gets_at_least_the_isolation_that_it_demands() -> None:
    bare, boxed = a_node("node-a"), a_node("node-b", backends=frozenset({"gvisor"}), used=used(cpu=3000))
    assert placed_on(wanted(isolation="sandbox"), bare, boxed) == "node-b"
    assert refusals(wanted(isolation="sandbox"), bare) == {"node-a": "offers process, not sandbox"}
    assert placed_on(wanted(isolation="process"), boxed) == "node-b"


def test_a_draining_and_a_silent_node_get_nothing() -> None:
    silent, gone = a_node("node-b", seen_at=NOW - 12), a_node("node-c", present=False)
    assert refusals(wanted(), a_node("node-a", draining=True), silent, gone) == {
        "node-a": "is draining",
        "node-b": "has not been heard of for 12 s",
        "node-c": "has left",
    }


def test_a_node_that_refused_is_left_alone_for_a_while() -> None:
    want = wanted(refusals={NodeId("node-a"): Refusal(reason="refused: no disk", times=3, at=NOW - 3)})
    assert refusals(want, a_node("node-a")) == {"node-a": "refused: no disk"}
    later = wanted(refusals={NodeId("node-a"): Refusal(reason="refused: no disk", times=3, at=NOW - 4)})
    assert placed_on(later, a_node("node-a")) == "node-a"


def test_the_reasons_name_what_is_needed_and_what_is_free() -> None:
    full = a_node("node-a", used=used(cpu=3500, memory=6144, containers=2))
    small = a_node("node-b", cpu_milli=1000)
    crowded = a_node("node-c", max_containers=2, used=used(containers=2))
    want = wanted(cpu_milli=2000, memory_mib=4096)
    assert refusals(want, full, small, crowded) == {
        "node-a": "is full (needs 2 cores, 0.5 cores free, needs 4 GiB, 2 GiB free)",
        "node-b": "is too small (needs 2 cores, 1 core in all)",
        "node-c": "is full (runs 2 of 2 containers)",
    }


def test_the_message_is_one_sentence_for_the_user() -> None:
    none, full = a_node("node-a"), a_node("node-b", gpus=("H100",), used=used(memory=6144))
    verdict = place(wanted(gpus=(GpuRequest("H100"),), memory_mib=8192), a_cluster(none, full), NOW)
    assert isinstance(verdict, NoRoom)
    assert verdict.message == "no node offers H100: node-b is full (needs 8 GiB, 2 GiB free); node-a has no GPU"
    nobody = place(wanted(), a_cluster(), NOW)
    assert isinstance(nobody, NoRoom)
    assert nobody.message == "no node is alive"


def test_a_long_message_names_some_nodes_and_counts_the_others() -> None:
    nodes = [a_node(f"node-{n}", draining=True) for n in range(9)]
    verdict = place(wanted(), a_cluster(*nodes), NOW)
    assert isinstance(verdict, NoRoom)
    assert verdict.message.endswith("node-3 is draining; 5 more")
    assert len(verdict.rejected) == 9


def test_further_containers_leave_room_for_the_first_ones_of_other_pools() -> None:
    node = a_node("node-a", cpu_milli=2000, used=used(cpu=1750, containers=14))
    assert "last room" in refusals(wanted(first=False), node)["node-a"]
    assert placed_on(wanted(first=True), node) == "node-a"


def test_a_container_as_large_as_half_a_node_may_fill_it() -> None:
    node = a_node("node-a", cpu_milli=2000, used=used(cpu=1000, containers=1))
    assert placed_on(wanted(cpu_milli=1000, first=False), node) == "node-a"


def test_gpus_are_described_as_they_are_written() -> None:
    assert describe_gpus((GpuRequest("H100", count=2), GpuRequest("A100"))) == "2 H100 or A100"


def test_cores_are_never_rounded_down() -> None:
    assert milli(0.125) == 125
    assert milli(0.57) == 570
    assert milli(0.0001) == 1


# --- properties ------------------------------------------------------------------------------------------------------

KINDS = ("T4", "A100", "A100-80GB", "H100", "H200")
names = st.sampled_from([f"node-{letter}" for letter in "abcdef"])


@st.composite
def nodes(draw: st.DrawFn) -> dict[NodeId, Node]:
    found = {}
    for name in draw(st.sets(names, max_size=5)):
        found[NodeId(name)] = a_node(
            name,
            cpu_milli=draw(st.integers(0, 4000)),
            memory_mib=draw(st.integers(0, 4096)),
            gpus=draw(st.lists(st.sampled_from(KINDS), max_size=4)),
            max_containers=draw(st.integers(0, 12)),
            draining=draw(st.booleans()),
            present=draw(st.sampled_from((True, True, True, False))),
            seen_at=NOW - draw(st.sampled_from((0.0, 5.0, 20.0))),
            backends=draw(st.frozensets(st.sampled_from(("process", "sandbox", "gvisor", "docker")), max_size=2)),
            images=draw(st.frozensets(st.just("im-1"))),
            templates=draw(st.frozensets(st.just("fu-1"))),
        )
    return found


wants = st.builds(
    wanted,
    cpu_milli=st.integers(1, 2000),
    memory_mib=st.integers(1, 2048),
    isolation=st.sampled_from(("process", "sandbox", "gvisor")),
    first=st.booleans(),
    gpus=st.lists(
        st.builds(GpuRequest, type=st.sampled_from(KINDS), count=st.integers(1, 3), exact=st.booleans()), max_size=3
    ).map(tuple),
)


@settings(max_examples=25)
@given(nodes(), st.lists(wants, max_size=30))
def test_no_sequence_of_placements_assigns_more_than_a_node_has(
    there: dict[NodeId, Node], sequence: list[Wanted]
) -> None:
    cluster = Cluster(nodes=there)
    held: dict[NodeId, list[str]] = {node: [] for node in there}
    for want in sequence:
        match place(want, cluster, NOW):
            case Placed(node=node, gpus=gpus):
                cluster = cluster.with_container(node, want, gpus)
                held[node] += gpus
            case NoRoom(rejected=rejected):
                assert set(rejected) == set(there)
                assert all(rejected.values())
    for node_id, node in cluster.nodes.items():
        assert node.used.cpu_milli <= node.cpu_milli
        assert node.used.memory_mib <= node.memory_mib
        assert node.used.containers <= node.max_containers
        assert len(held[node_id]) == len(set(held[node_id]))
        assert set(held[node_id]) <= {gpu.uuid for gpu in node.gpus}


@settings(max_examples=25)
@given(nodes(), wants, st.integers(0, 12))
def test_placing_several_is_placing_one_after_the_other(there: dict[NodeId, Node], want: Wanted, number: int) -> None:
    cluster, one_by_one = Cluster(nodes=there), []
    for _ in range(number):
        verdict = place(want, cluster, NOW)
        if isinstance(verdict, NoRoom):
            break
        one_by_one.append(verdict)
        cluster = cluster.with_container(verdict.node, want, verdict.gpus)
    several = place_many(want, number, Cluster(nodes=there), NOW)
    assert list(several.placed) == one_by_one
    assert several.cluster == cluster
    assert several.no_room == (place(want, cluster, NOW) if len(one_by_one) < number else None)


@settings(max_examples=25)
@given(nodes(), wants)
def test_the_same_question_has_the_same_answer_in_any_order_of_nodes(there: dict[NodeId, Node], want: Wanted) -> None:
    backwards = Cluster(nodes=dict(reversed(there.items())))
    assert place(want, Cluster(nodes=there), NOW) == place(want, backwards, NOW)


@settings(max_examples=25)
@given(nodes(), wants)
def test_a_node_that_is_taken_could_be_taken(there: dict[NodeId, Node], want: Wanted) -> None:
    verdict = place(want, Cluster(nodes=there), NOW)
    if isinstance(verdict, Placed):
        node = there[verdict.node]
        assert node.alive(NOW)
        assert not node.draining
        if want.gpus:
            assert len(verdict.gpus) in {choice.count for choice in want.gpus}
            exact = {choice.type for choice in want.gpus if choice.exact}
            if exact and all(choice.exact for choice in want.gpus):
                assert {gpu.type for gpu in node.gpus if gpu.uuid in verdict.gpus} <= exact
        else:
            assert verdict.gpus == ()


@settings(max_examples=25)
@given(nodes(), wants)
def test_no_room_means_that_no_single_node_would_take_it(there: dict[NodeId, Node], want: Wanted) -> None:
    if isinstance(place(want, Cluster(nodes=there), NOW), NoRoom):
        for node_id, node in there.items():
            assert isinstance(place(want, Cluster(nodes={node_id: node}), NOW), NoRoom)


def test_a_node_that_cannot_give_a_disk_or_mount_buckets_is_not_asked_and_says_why() -> None:
    poor = a_node("node-a", no_disks="no loop devices", no_buckets="/dev/fuse cannot be opened")
    assert refusals(wanted(disk_mib=1024), poor) == {"node-a": "cannot give ephemeral_disk=1024 (no loop devices)"}
    assert refusals(wanted(buckets=True), poor) == {"node-a": "cannot mount buckets (/dev/fuse cannot be opened)"}
    assert placed_on(wanted(disk_mib=1024, buckets=True), poor, a_node("node-b", cpu_milli=200)) == "node-b"
    assert placed_on(wanted(), poor) == "node-a"


def test_a_node_whose_backend_gives_no_devices_is_not_asked_for_gpus_and_says_why() -> None:
    gvisor = a_node("node-a", gpus=("H100",), backends=frozenset({"gvisor"}), no_gpus="gVisor has none")
    fuller = a_node("node-b", gpus=("H100",), backends=frozenset({"sandbox"}), used=used(cpu=3000))
    want = wanted(gpus=(GpuRequest("H100"),), isolation="sandbox")
    assert refusals(want, gvisor) == {"node-a": "gives no GPUs to containers (gVisor has none)"}
    assert placed_on(want, gvisor, fuller) == "node-b"
    assert placed_on(wanted(isolation="sandbox"), gvisor) == "node-a"
