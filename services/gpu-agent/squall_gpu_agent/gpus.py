"""GPUs: the devices of this machine, read again and again. Owns what is known of them; assigns nothing.

Where they come from is a source: the driver (`nvml`), or a declaration of devices that do not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from squall import gpu_types
from squall_contracts.nodes import GpuFact
from squall_gpu_agent.policy import devices
from squall_gpu_agent.policy.devices import Device, Seen
from squall_service.telemetry import log

READ_TIMEOUT_S = 10.0
"""A driver may be busy for seconds while it resets a device."""
NO_DRIVER_S = 30.0
SIMULATED = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a source says."""

    seen: tuple[Seen, ...]
    note: str
    """Where this comes from, or why there is nothing."""


class Source(Protocol):
    """Reads devices."""

    changes: bool
    """Whether another reading may find something else."""

    def read(self) -> Reading:
        """All devices that answer. May block."""


class Gpus:
    """The devices of this machine."""

    def __init__(
        self, source: Source, offered: str = "all", interval_s: float = 2.0, timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        self._source = source
        self._offered = offered
        self._chosen: frozenset[str] = frozenset()
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._reading: asyncio.Future[Reading] | None = None
        self.devices: tuple[Device, ...] = ()
        self.note = ""

    @property
    def read_again_s(self) -> float:
        """When to read again; 0 = never. Where there is no driver one may still be installed."""
        if not self._source.changes:
            return 0.0
        return self._interval_s if self.devices else max(self._interval_s, NO_DRIVER_S)

    def is_simulated(self, uuid: str) -> bool:
        """Whether that device only exists in name."""
        return any(device.uuid == uuid and device.seen.simulated for device in self.devices)

    async def read(self, assigned: Set[str]) -> list[Device]:
        """Read again; the devices that differ in what may be done with them. Says in the log what it found."""
        reading = await self._read()
        if reading is None:
            found, note = devices.unheard(self.devices), self.note
        else:
            found = devices.fold(self.devices, self._offers(reading.seen), assigned)
            note = reading.note
        different = devices.changed(self.devices, found)
        self._log(found, note, different)
        self.devices, self.note = found, note
        return different

    def _offers(self, seen: tuple[Seen, ...]) -> tuple[Seen, ...]:
        if self._offered == "all":
            return seen
        if not self._chosen:
            # Once: the driver numbers devices anew when one is lost, and another one would take its number.
            self._chosen = frozenset(each.uuid for each in devices.chosen(seen, self._offered))
        return tuple(each for each in seen if each.uuid in self._chosen or each.parent in self._chosen)

    async def _read(self) -> Reading | None:
        """None when the driver does not answer, or fails. The next call waits for the same answer, so that threads do
        not pile up."""
        if self._reading is None:
            self._reading = asyncio.get_running_loop().run_in_executor(None, self._source.read)
        try:
            async with asyncio.timeout(self._timeout_s):
                reading = await asyncio.shield(self._reading)
        except TimeoutError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever a driver's library raises must not end the agent
            log.error("gpus_not_read", reason=f"{type(error).__name__}: {error}")
            self._reading = None
            return None
        self._reading = None
        return reading

    def _log(self, found: tuple[Device, ...], note: str, different: list[Device]) -> None:
        if note != self.note:
            what = "gpus_found" if found else "node_without_gpus"
            log.info(what, number=len(found), types=", ".join(sorted({device.type for device in found})), source=note)
            if note == SIMULATED:
                log.warning("gpus_are_simulated", reason="they exist in name only: code that uses them will fail")
        before = {device.uuid for device in self.devices}
        for device in different:
            if device.trouble:
                log.warning("gpu_not_assigned", gpu=device.uuid, type=device.type, reason=device.trouble)
            elif device.uuid in before:
                log.info("gpu_assigned_again", gpu=device.uuid, type=device.type)

    def facts(self) -> tuple[GpuFact, ...]:
        """As they are told to everybody."""
        return tuple(_fact(device) for device in self.devices)


class Nothing:
    """No devices, whatever the machine has."""

    changes = False

    def read(self) -> Reading:
        """Always the same."""
        return Reading(seen=(), note="it offers none")


class Simulated:
    """Devices that exist in name only, for trying out placement."""

    changes = False

    def __init__(self, declaration: str, node: str) -> None:
        self._seen = simulated(declaration, node)

    def read(self) -> Reading:
        """Always the same."""
        return Reading(seen=self._seen, note=SIMULATED)


def simulated(declaration: str, node: str) -> tuple[Seen, ...]:
    """`H100:2,L4:1` as devices of that node. Raises `InvalidError`."""
    kinds = [kind for kind, number in gpu_types.simulated(declaration) for _ in range(number)]
    return tuple(
        Seen(
            uuid=f"sim-{node}-{kind.lower()}-{number}", name=kind, memory_mib=gpu_types.memory_mib(kind), simulated=True
        )
        for number, kind in enumerate(kinds)
    )


def _fact(device: Device) -> GpuFact:
    seen = device.seen
    return GpuFact(
        uuid=seen.uuid,
        type=device.type,
        memory_mib=seen.memory_mib,
        simulated=seen.simulated,
        name=seen.name,
        memory_used_mib=seen.memory_used_mib,
        mig=seen.mig,
        processes=len(seen.pids),
        trouble=device.trouble,
    )
