"""NVML: the devices as NVIDIA's driver tells them, through nvidia-ml-py. The only importer of pynvml; blocks.

Every path of a sick machine ends in a reading: no library, no driver, a device that is lost, a query that this device
or this driver does not have.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from squall_gpu_agent.gpus import Reading
from squall_gpu_agent.policy.devices import Seen

LIBRARY = "libnvidia-ml.so.1"
NO_DRIVER = "no NVIDIA driver"
T = TypeVar("T")


class Nvml:
    """One connection to the driver, made at the first reading that finds one."""

    changes = True

    def __init__(self) -> None:
        self._nv: Any = None  # the module pynvml, which has no types
        self._events: Any = None
        self._watched: set[str] = set()
        """Devices whose critical errors we are told of."""

    def read(self) -> Reading:
        """All devices that answer."""
        absent = self._connect()
        if absent:
            return Reading(seen=(), note=absent)
        nv = self._nv
        try:
            driver, count = nv.nvmlSystemGetDriverVersion(), nv.nvmlDeviceGetCount()
        except nv.NVMLError as error:
            self._nv = None  # the driver was unloaded, or is being replaced: from the start at the next reading
            return Reading(seen=(), note=f"the NVIDIA driver does not work: {error}")
        handles = dict(filter(None, (self._handle(number) for number in range(count))))
        self._watch(handles)
        xids = self._new_xids()
        read = (self._device(uuid, handle, tuple(xids[uuid])) for uuid, handle in handles.items())
        whole = tuple(filter(None, read))
        instances = [each for device in whole if device.mig for each in self._instances(handles[device.uuid], device)]
        return Reading(seen=(*whole, *instances), note=f"driver {driver}")

    def _connect(self) -> str:
        """Why there is no connection; empty = there is one."""
        if self._nv is not None:
            return ""
        try:
            ctypes.CDLL(LIBRARY)  # 60 ms cheaper than the import below, on the machines that have no driver
        except OSError:
            return NO_DRIVER
        import pynvml  # type: ignore[import-untyped]

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            return f"{NO_DRIVER} that works: {error}"
        self._nv, self._events = pynvml, None
        self._watched.clear()
        return ""

    def _handle(self, number: int) -> tuple[str, Any] | None:
        nv = self._nv
        try:
            handle = nv.nvmlDeviceGetHandleByIndex(number)
            return nv.nvmlDeviceGetUUID(handle), handle
        except nv.NVMLError:  # lost: it has no name any more, and is missed by that
            return None

    def _device(self, uuid: str, handle: Any, xids: tuple[int, ...]) -> Seen | None:
        nv = self._nv
        try:
            memory = nv.nvmlDeviceGetMemoryInfo(handle)
            return Seen(
                uuid=uuid,
                name=nv.nvmlDeviceGetName(handle),
                memory_mib=memory.total >> 20,
                memory_used_mib=memory.used >> 20,
                mig=self._ask(lambda: nv.nvmlDeviceGetMigMode(handle)[0] == 1, default=False),
                pids=self._ask(lambda: _pids(nv, handle), default=()),
                xids=xids,
                uncorrected=self._ask(lambda: _uncorrected(nv, handle), default=0),
                remap_failed=self._ask(lambda: bool(nv.nvmlDeviceGetRemappedRows(handle)[3]), default=False),
            )
        except nv.NVMLError:
            return None

    def _instances(self, handle: Any, device: Seen) -> Iterator[Seen]:
        """The MIG instances of a device that is in that mode. What befalls the device befalls them."""
        nv = self._nv
        for number in range(self._ask(lambda: int(nv.nvmlDeviceGetMaxMigDeviceCount(handle)), default=0)):
            try:
                part = nv.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                memory = nv.nvmlDeviceGetMemoryInfo(part)
                yield replace(
                    device,
                    uuid=nv.nvmlDeviceGetUUID(part),
                    name=f"{device.name} MIG {profile(nv.nvmlDeviceGetAttributes(part))}",
                    memory_mib=memory.total >> 20,
                    memory_used_mib=memory.used >> 20,
                    mig=False,
                    parent=device.uuid,
                    pids=self._ask(lambda part=part: _pids(nv, part), default=()),  # type: ignore[misc]
                )
            except nv.NVMLError:
                continue  # there is no instance of that number, or it is being removed

    def _ask(self, query: Callable[[], T], *, default: T) -> T:
        """The answer, or `default` where this device or this driver has none. Raises NVMLError for a sick device."""
        nv = self._nv
        try:
            return query()
        except (nv.NVMLError_NotSupported, nv.NVMLError_FunctionNotFound, nv.NVMLError_NoPermission):
            return default

    # ------------------------------------------------------------------ critical errors

    def _watch(self, handles: dict[str, Any]) -> None:
        nv = self._nv
        try:
            if self._events is None:
                self._events = nv.nvmlEventSetCreate()
        except nv.NVMLError:
            return  # not on this system: lost devices and memory errors are found all the same
        for uuid, handle in handles.items():
            if uuid not in self._watched:
                self._watched.add(uuid)
                try:
                    nv.nvmlDeviceRegisterEvents(handle, nv.nvmlEventTypeXidCriticalError, self._events)
                except nv.NVMLError:
                    pass  # old devices have none

    def _new_xids(self) -> defaultdict[str, list[int]]:
        nv, found = self._nv, defaultdict[str, list[int]](list)
        if self._events is None:
            return found
        while True:
            try:
                event = nv.nvmlEventSetWait_v2(self._events, 0)
                found[nv.nvmlDeviceGetUUID(event.device)].append(int(event.eventData))
            except nv.NVMLError_Timeout:
                return found
            except nv.NVMLError:
                return found  # of a device that is lost meanwhile


def profile(attributes: Any) -> str:
    """`1g.10gb`, as NVIDIA's tools call an instance: slices, and memory rounded up; `1c.3g.40gb` if it has fewer
    compute slices."""
    slices, compute = attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount
    part = f"{compute}c." if compute < slices else ""
    return f"{part}{slices}g.{math.ceil(attributes.memorySizeMB / 1024)}gb"


def _pids(nv: Any, handle: Any) -> tuple[int, ...]:
    return tuple(process.pid for process in nv.nvmlDeviceGetComputeRunningProcesses(handle))


def _uncorrected(nv: Any, handle: Any) -> int:
    return int(nv.nvmlDeviceGetTotalEccErrors(handle, nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_VOLATILE_ECC))
