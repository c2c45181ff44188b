"""Capacity: what this machine has, and what its containers have been promised. The agent's own truth about room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from squall.spec import DISK_IN_MEMORY_MIB, FunctionSpec, Resources
from squall_contracts.functions import FunctionRecord
from squall_contracts.nodes import ContainerClaim
from squall_gpu_agent.backend import Capabilities
from squall_gpu_agent.gpus import Gpus
from squall_gpu_agent.policy.acceptance import Accept, Machine, Refuse, Wanted, decide
from squall_gpu_agent.policy.devices import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """What one container has been promised."""

    cpu: float
    memory_mib: int
    gpus: tuple[str, ...] = ()


class Capacity:
    """The machine's books."""

    def __init__(
        self,
        *,
        cpu: float,
        memory_mib: int,
        max_containers: int,
        gpus: Gpus,
        capabilities: Capabilities,
    ) -> None:
        self.cpu = cpu
        self.memory_mib = memory_mib
        self.max_containers = max_containers
        self.gpus = gpus
        self.capabilities = capabilities
        self.draining = False
        """It takes no containers: an operator said so, or the agent stops."""
        self.leaving_at = 0.0
        """When the machine will be taken away; 0 = no notice was given."""
        self._reserved: dict[str, Reserved] = {}

    @property
    def reserved(self) -> Mapping[str, Reserved]:
        """By container."""
        return self._reserved

    @property
    def cpu_used(self) -> float:
        """Cores promised."""
        return sum(reserved.cpu for reserved in self._reserved.values())

    @property
    def memory_used_mib(self) -> int:
        """Memory promised."""
        return sum(reserved.memory_mib for reserved in self._reserved.values())

    @property
    def gpus_used(self) -> tuple[str, ...]:
        """uuids of devices that are taken."""
        return tuple(uuid for reserved in self._reserved.values() for uuid in reserved.gpus)

    def gpu_states(self) -> list[tuple[str, str]]:
        """Type of each device, and whether it is free, used or in trouble."""
        used = set(self.gpus_used)

        def state(device: Device) -> str:
            return "trouble" if device.trouble else "used" if device.uuid in used else "free"

        return [(device.type, state(device)) for device in self.gpus.devices]

    def reserve(self, claim: ContainerClaim, function: FunctionRecord) -> Accept | Refuse:
        """Accept the claim and book its share, or say why not."""
        resources = function.spec.resources
        wanted = Wanted(
            cpu=claim.cpu or resources.cpu,
            memory_mib=claim.memory_mib or resources.memory_mib,
            gpus=claim.gpus,
            gpus_required=bool(resources.gpus),
            isolation=function.spec.isolation,
            # What plain processes run with must be on the machine; an image with a root of its own brings it.
            python_version="" if self._brings_python(function.spec) else function.spec.image.python_version,
            disk_mib=disk_mib if (disk_mib := resources.ephemeral_disk_mib or 0) > DISK_IN_MEMORY_MIB else 0,
        )
        decision = decide(wanted, self._machine())
        if isinstance(decision, Accept):
            self._reserved[claim.container] = Reserved(cpu=wanted.cpu, memory_mib=wanted.memory_mib, gpus=wanted.gpus)
        return decision

    def _brings_python(self, spec: FunctionSpec) -> bool:
        return self.capabilities.plain and self.capabilities.isolates(spec)

    def release(self, container: str) -> None:
        """The container is gone."""
        self._reserved.pop(container, None)

    def gpu_env(self, gpus: tuple[str, ...]) -> dict[str, str]:
        """Which devices a container sees: none at all unless they are its own."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void"}

    def _machine(self) -> Machine:
        return Machine(
            cpu=self.cpu,
            memory_mib=self.memory_mib,
            max_containers=self.max_containers,
            cpu_used=self.cpu_used,
            memory_used_mib=self.memory_used_mib,
            containers=len(self._reserved),
            gpus=frozenset(device.uuid for device in self.gpus.devices),
            gpu_troubles={device.uuid: device.trouble for device in self.gpus.devices if device.trouble},
            gpus_used=frozenset(self.gpus_used),
            isolation=self.capabilities.isolation.value,
            python_versions=self.capabilities.python_versions,
            draining=self.draining or self.leaving_at > 0,
            no_disks=self.capabilities.no_disks,
            no_gpus=self.capabilities.no_gpus,
        )


def smaller(claim: ContainerClaim, asked: Resources) -> list[str]:
    """Of what the container is given less than its function asks for, in words for its log."""
    said = []
    if 0 < claim.cpu < asked.cpu:
        said.append(f"asks for {asked.cpu:g} cores, more than this machine has; kept for it: {claim.cpu:g}")
    if 0 < claim.memory_mib < asked.memory_mib:
        said.append(f"asks for {asked.memory_mib} MiB, more than this machine has; kept for it: {claim.memory_mib} MiB")
    return said
