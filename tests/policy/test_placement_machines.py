"""What the scheduler knows of machines, as its own clock jumps."""

from __future__ import annotations

from squall_contracts.nodes import NODE_TTL_S, NodeFact
from squall_scheduler.machines import Machines
from squall_scheduler.state import NodeId

NODE = NodeId("n1")


def heard_at(now: float, monotonic: float) -> Machines:
    machines = Machines()
    machines.clock_read(now, monotonic)
    machines.node_seen(NodeFact(node=NODE, region="local", at=now, cpu=1.0, memory_mib=1024), now)
    return machines


def test_a_node_that_was_heard_a_moment_ago_is_not_lost_because_our_clock_jumps() -> None:
    machines = heard_at(1000.0, 5.0)

    machines.clock_read(1031.0, 6.0)

    assert not machines.cluster().lost(NODE, 1031.0)
    assert not machines.cluster().lost(NODE, 1031.0 + NODE_TTL_S)


def test_a_node_that_stays_silent_after_a_jump_is_lost_after_its_time() -> None:
    machines = heard_at(1000.0, 5.0)
    machines.clock_read(1031.0, 6.0)

    later = 1031.0 + NODE_TTL_S + 0.1
    machines.clock_read(later, 6.0 + NODE_TTL_S + 0.1)

    assert machines.cluster().lost(NODE, later)


def test_a_node_is_lost_after_its_time_while_the_clock_goes_on_as_it_should() -> None:
    machines = heard_at(1000.0, 5.0)

    machines.clock_read(1000.0 + NODE_TTL_S + 0.1, 5.0 + NODE_TTL_S + 0.1)

    assert machines.cluster().lost(NODE, 1000.0 + NODE_TTL_S + 0.1)


def test_placement_knows_why_a_node_gives_no_gpus() -> None:
    machines = Machines()
    machines.node_seen(NodeFact(node=NODE, region="local", at=1.0, cpu=1.0, memory_mib=1024, no_gpus="gVisor"), 1.0)
    assert machines.cluster().nodes[NODE].no_gpus == "gVisor"
