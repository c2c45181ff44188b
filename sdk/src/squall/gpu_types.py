"""Names of GPU types: those that `gpu=` knows, how a request is read, and which name a driver's device goes by.

Owns the names. Which device may stand in for another is the scheduler's decision.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from squall.errors import InvalidError
from squall.spec import GpuRequest

MAX_GPUS = 8
"""Of one container: as many as the largest common machine has."""
ANY = "ANY"
MEMORY_MIB = {
    "T4": 15_360,
    "L4": 23_034,
    "A10": 23_028,
    "A10G": 23_028,
    "L40": 46_068,
    "L40S": 46_068,
    "A30": 24_576,
    "A40": 46_068,
    "V100": 16_384,
    "P100": 16_384,
    "A100-40GB": 40_960,
    "A100-80GB": 81_920,
    "H100": 81_559,
    "H200": 143_771,
    "GH200": 97_871,
    "B200": 183_359,
    "GB200": 189_471,
    "B300": 275_040,
    "GB300": 284_208,
    "RTX-PRO-6000": 97_887,
}
"""Types of devices, and the memory of a simulated one."""
FAMILIES = ("A100", "B200+", ANY)
"""Names of requests that several types satisfy."""
OTHER_CARDS = re.compile(r"(RTX|GTX|TITAN|QUADRO)(-[A-Z0-9]+)+")
"""Desktop and workstation cards: there are too many to list, and every machine's own are as good as any."""
MIG = re.compile(r"([A-Z0-9-]+)-MIG-(?:\d+C\.)?\d+G\.(\d+)GB(?:\+\S+)?")
"""An instance of a device that is divided: `H100-MIG-1g.10gb`."""
OTHER_MEMORY_MIB = 16_384
MOST_SIMULATED = 1024

_NOISE = re.compile(
    r"NVIDIA|TESLA|GEFORCE|GRAPHICS|DEVICE|GPU|PCIE|SXM\d*|HBM\w*|NVL\d*|AC|\d+GB|GENERATION|SERVER|WORKSTATION|EDITION|"
    r"BLACKWELL|MAX|Q|LAPTOP|\d+MB"
)


def requests(wanted: Any) -> tuple[GpuRequest, ...]:
    """The acceptable choices of a `gpu=`, in their order. Raises `InvalidError` naming the one that is not valid."""
    if wanted is None or wanted is False:
        return ()
    choices: Sequence[Any] = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise InvalidError(
            f"gpu must be text or a list of texts, got {wanted!r}", fix='Write gpu="H100" or gpu="H100:8".'
        )
    return tuple(request(choice) for choice in choices)


def request(choice: str) -> GpuRequest:
    """`H100`, `h100:2`, `H100!` or `H100!:2`. Raises `InvalidError`."""
    name, colon, count = choice.strip().partition(":")
    if colon and not (count.isascii() and count.isdigit() and 1 <= int(count) <= MAX_GPUS):
        after = f"Write {name}!{colon}{count[:-1]}." if count.endswith("!") else ""
        raise InvalidError(
            f"gpu {choice!r}: {count!r} is not a number of devices",
            fix=after or f"Write TYPE:n with n from 1 to {MAX_GPUS}; all of them are on one machine.",
        )
    kind = (name[:-1] if name.endswith("!") else name).strip().upper()
    if not known(kind):
        raise InvalidError(f"gpu {choice!r}: {kind or 'nothing'} is not a type of GPU", fix=_suggestion(kind))
    if MIG.fullmatch(kind) and int(count or 1) > 1:
        raise InvalidError(
            f"gpu {choice!r}: a program uses one MIG instance at a time",
            fix="Ask for one larger instance, or a whole GPU.",
        )
    return GpuRequest(type=kind, count=int(count or 1), exact=name.endswith("!"))


def known(kind: str) -> bool:
    """Whether requests may name that type."""
    instance = MIG.fullmatch(kind)
    if instance:
        return instance[1] in MEMORY_MIB or instance[1] == "A100"
    return kind in MEMORY_MIB or kind in FAMILIES or OTHER_CARDS.fullmatch(kind) is not None


def type_of(name: str) -> str:
    """What a device goes by of which the driver gives the name: `NVIDIA A100-SXM4-80GB` is an A100-80GB."""
    words = [word for word in re.split(r"[\s\-_/()]+", name.upper()) if word]
    kind = "-".join(word for word in words if not _NOISE.fullmatch(word)) or "UNKNOWN"
    if kind != "A100":
        return kind
    return "A100-80GB" if "80GB" in words else "A100-40GB"


def simulated(declaration: str) -> list[tuple[str, int]]:
    """`H100:2,L4:1` as types and numbers of devices. Raises `InvalidError`."""
    found = []
    for part in filter(None, (part.strip() for part in declaration.split(","))):
        kind, _, count = part.upper().partition(":")
        number = int(count or 1) if (count or "1").isdecimal() else 0
        if kind in ("B200+", ANY) or not known(kind) or not 1 <= number <= MOST_SIMULATED:
            raise InvalidError(
                f"simulated GPUs {declaration!r}: {part!r} is not a type of device and a number of them",
                fix=f"Declare them as H100:2,L4:1; types are {', '.join(MEMORY_MIB)}, or cards such as RTX-4090.",
            )
        found.append((kind, number))
    return found


def memory_mib(kind: str) -> int:
    """Memory of a simulated device."""
    instance = MIG.fullmatch(kind)
    if instance:
        return int(instance[2]) * 1024
    return MEMORY_MIB.get(kind, OTHER_MEMORY_MIB)


def _suggestion(kind: str) -> str:
    names = [*MEMORY_MIB, *FAMILIES]
    near = difflib.get_close_matches(kind, names, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"There are {', '.join(names)}, and cards such as RTX-4090."
