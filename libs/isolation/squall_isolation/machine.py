"""Whether sandboxes can be had on this machine, as far as it can be told without making one.

Reads files and changes nothing: 1 ms, so that a platform may ask at each start. Who then makes a sandbox has the last
word.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

FIRST_LINUX = (5, 19)
"""Id-mapped mounts below overlays."""
CAPABILITIES = {"SYS_ADMIN": 21, "NET_ADMIN": 12}
"""A root that lacks them is one of an unprivileged container."""
TOOLS = ("nft",)
"""Without them sandboxes have no network, which programs expect."""
_PROC = Path("/proc")


def lacking(proc: Path = _PROC) -> str:
    """What stands against sandboxes with a network, in words for an operator; "" if nothing does."""
    if sys.platform != "linux":
        return "they need Linux"
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < FIRST_LINUX:
        return f"they need Linux 5.19, this is {release}"
    if os.geteuid() != 0:
        return "they need root"
    if absent := [name for name, bit in CAPABILITIES.items() if not _effective(proc) >> bit & 1]:
        return f"root has no {', '.join(absent)} here, as in an unprivileged container"
    if not _user_namespaces(proc):
        return "user namespaces are turned off (sysctl user.max_user_namespaces)"
    if absent := [name for name in TOOLS if shutil.which(name) is None]:
        return f"{', '.join(absent)} not found (install nftables)"
    return ""


def _effective(proc: Path) -> int:
    """The capabilities of this process."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", (proc / "self/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _user_namespaces(proc: Path) -> bool:
    try:
        return int((proc / "sys/user/max_user_namespaces").read_text()) > 0
    except (OSError, ValueError):
        return False
