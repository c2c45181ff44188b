"""Devices of this machine. Simulated ones only, until there is an adapter for a driver."""

from __future__ import annotations

from squall.errors import InvalidError
from squall_contracts.nodes import GpuFact

SIMULATED_MEMORY_MIB = {"T4": 16_384, "L4": 24_576, "A10G": 24_576, "L40S": 49_152, "A100": 40_960, "H100": 81_920}


def simulated(declaration: str) -> tuple[GpuFact, ...]:
    """`H100:2,L4:1` as facts. Raises `InvalidError`."""
    facts: list[GpuFact] = []
    for part in filter(None, (part.strip() for part in declaration.split(","))):
        kind, _, count = part.partition(":")
        if count and not count.isdigit():
            raise InvalidError(f"simulated GPUs are declared as `H100:2,L4:1`, got {declaration!r}")
        memory_mib = SIMULATED_MEMORY_MIB.get(kind, 16_384)
        for number in range(int(count or 1)):
            uuid = f"sim-{kind.lower()}-{number}"
            facts.append(GpuFact(uuid=uuid, type=kind, memory_mib=memory_mib, simulated=True))
    return tuple(facts)
