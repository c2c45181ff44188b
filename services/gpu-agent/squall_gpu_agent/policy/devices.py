"""Devices: what this machine's GPUs are and which of them containers may have, folded from readings. Pure.

A device that has failed (lost, broken memory, a critical error of the driver's) must not compute on: its container is
stopped. One that merely cannot be assigned (divided into instances, used by somebody else) harms nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from squall.gpu_types import type_of

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Critical errors that a program causes and that leave the device as it was: 13 and 31 are bad memory accesses, 43 and
45 a program that stopped, 68 a video decoder's, 109 a time-out of switching (NVIDIA, "XID errors")."""
LOST = "is lost: the driver does not find it any more"
SILENT = "is not known to be well: the driver does not answer"
DIVIDED = "is in MIG mode: its instances are assigned, each as a device of its own"
UNDIVIDED = "is in MIG mode and has no instances"
TAKEN_APART = "is gone: its device was divided anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One device as one reading found it."""

    uuid: str
    name: str
    memory_mib: int
    memory_used_mib: int = 0
    mig: bool = False
    """It is divided into instances, or to be."""
    parent: str = ""
    """Of an instance: the device that it is a part of."""
    pids: tuple[int, ...] = ()
    """Programs that compute on it."""
    xids: tuple[int, ...] = ()
    """Critical errors since the last reading."""
    uncorrected: int = 0
    """Memory errors since the driver was loaded that could not be corrected."""
    remap_failed: bool = False
    """It has no spare memory left to replace a broken row."""
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device as far as is known."""

    seen: Seen
    """As it was read last."""
    xid: int = 0
    """A critical error that only a reset ends, of which we would not know: it stays until the agent starts anew."""
    failure: str = ""
    """Why nothing may compute on it."""
    obstacle: str = ""
    """Why it cannot be assigned, though it is well."""

    @property
    def uuid(self) -> str:
        return self.seen.uuid

    @property
    def type(self) -> str:
        """As `gpu=` names it."""
        return type_of(self.seen.name)

    @property
    def trouble(self) -> str:
        """Why no container gets it; empty = it can be assigned."""
        return self.failure or self.obstacle


def fold(known: Sequence[Device], seen: Sequence[Seen], assigned: Set[str]) -> tuple[Device, ...]:
    """All devices after a reading. `assigned`: those that belong to a container, whose programs are expected there."""
    before: Mapping[str, Device] = {device.uuid: device for device in known}
    divided = {each.parent for each in seen}
    now = {each.uuid: _as_seen(before.get(each.uuid), each, each.uuid in assigned, divided) for each in seen}
    # The driver numbers devices anew when one falls off the bus: only its absence tells.
    gone = {
        uuid: replace(old, failure=TAKEN_APART if old.seen.parent in now else LOST)
        for uuid, old in before.items()
        if uuid not in now and (uuid in assigned or not old.seen.parent)
    }
    return tuple({**{uuid: now.get(uuid) or gone[uuid] for uuid in before if uuid in {*now, *gone}}, **now}.values())


def unheard(known: Sequence[Device]) -> tuple[Device, ...]:
    """All devices after the driver did not answer: what runs goes on, nothing new is started."""
    return tuple(replace(device, obstacle=SILENT) for device in known)


def changed(old: Sequence[Device], new: Sequence[Device]) -> list[Device]:
    """The devices that came, or that can be assigned now and could not before, or the other way round."""
    troubles = {device.uuid: device.trouble for device in old}
    return [device for device in new if troubles.get(device.uuid) != device.trouble]


def chosen(seen: Sequence[Seen], offered: str) -> tuple[Seen, ...]:
    """The devices that are meant by numbers and uuids with commas between. Instances have no numbers."""
    wanted = {part.strip() for part in offered.split(",")}
    whole = [each.uuid for each in seen if not each.parent]
    numbered = {uuid for number, uuid in enumerate(whole) if str(number) in wanted}
    return tuple(each for each in seen if each.uuid in wanted or each.uuid in numbered)


def _as_seen(old: Device | None, seen: Seen, assigned: bool, divided: Set[str]) -> Device:
    xid = old.xid if old else 0
    xid = next((each for each in seen.xids if each not in APPLICATION_XIDS), xid)
    obstacle = ""
    if seen.mig:
        obstacle = DIVIDED if seen.uuid in divided else UNDIVIDED
    elif seen.pids and not assigned:
        obstacle = f"is used by a program that is not squall's (process {seen.pids[0]})"
    return Device(seen=seen, xid=xid, failure=_failure(seen, xid), obstacle=obstacle)


def _failure(seen: Seen, xid: int) -> str:
    if xid:
        return f"has failed: critical error XID {xid} of the driver"
    if seen.uncorrected:
        return f"has {seen.uncorrected} memory errors that could not be corrected: reset it"
    if seen.remap_failed:
        return "has broken memory and no spare rows left: replace it"
    return ""
