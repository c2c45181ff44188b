"""How many files and connections a service process may have open: far more than the 1,024 that Linux begins with."""

from __future__ import annotations

import resource

MOST = 65_536
"""A gateway has a descriptor for each client and each web request, an agent for each container's connections."""


def allow_many_open_files() -> None:
    """Once, at the start of a process: as many as the machine's owner allows, `MOST` at the most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
