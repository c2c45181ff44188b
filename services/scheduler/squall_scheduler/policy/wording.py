"""Words for verdicts: what a user who waits for a container reads. Owns no state, does no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from squall.spec import GpuRequest
from squall_scheduler.state import NodeId, Wanted

NAMED_NODES = 4
"""Nodes that a message names; all of them are in `rejected`."""


def explain(wanted: Wanted, rejected: Mapping[NodeId, str]) -> str:
    """One sentence: what nobody offers, and what each node says."""
    if not rejected:
        return "no node is alive"
    what = f"offers {describe_gpus(wanted.gpus)}" if wanted.gpus else "has room"
    # Nodes that could take it one day come first: they are what the user waits for.
    ordered = sorted(rejected, key=lambda node: (rejected[node].startswith("has no "), node))
    said = [f"{node} {rejected[node]}" for node in ordered[:NAMED_NODES]]
    if len(ordered) > NAMED_NODES:
        said.append(f"{len(ordered) - NAMED_NODES} more")
    return f"no node {what}: {'; '.join(said)}"


def describe_gpus(gpus: Sequence[GpuRequest]) -> str:
    """`H100` or `2 H100 or A100`."""
    return " or ".join(_one_choice(gpu) for gpu in gpus)


def _one_choice(gpu: GpuRequest) -> str:
    kind = "any GPU" if gpu.type.lower() == "any" else f"{gpu.type}{'!' if gpu.exact else ''}"
    return f"{gpu.count} {kind}" if gpu.count > 1 else kind


def against(wanted: Wanted, cpu_milli: int, memory_mib: int, there: str) -> str:
    said = []
    if wanted.cpu_milli > cpu_milli:
        said.append(f"needs {cores(wanted.cpu_milli)}, {cores(cpu_milli)} {there}")
    if wanted.memory_mib > memory_mib:
        said.append(f"needs {gibibytes(wanted.memory_mib)}, {gibibytes(memory_mib)} {there}")
    return ", ".join(said)


def cores(cpu_milli: int) -> str:
    """`0.5 cores`."""
    return f"{max(0, cpu_milli) / 1000:g} core{'' if cpu_milli == 1000 else 's'}"


def gibibytes(mib: int) -> str:
    """`8 GiB`, `512 MiB`."""
    mib = max(0, mib)
    return f"{mib / 1024:.3g} GiB" if mib >= 1024 else f"{mib} MiB"
