"""Keywords that wish for something of a provider's machines. On your own they change nothing, and a warning says so.

A program that has them runs as well without. What a program relies on (isolation, a fixed address) is refused instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squall.old_names import warn_at_users_line
from squall.place import is_local

WHY_NOTHING = {
    "cloud": "containers run on your own machines",
    "region": "containers run on your own machines",
    "routing_region": "requests go to your own gateway",
    "experimental_options": "squall has no experimental options",
}
OF_OPTIONS = {name: WHY_NOTHING[name] for name in ("cloud", "region", "routing_region")}
OF_BUILDS = {
    "gpu": "builds run without GPUs; find out about them in `@squall.enter()`",
    "cpu": "builds use what the builder has",
    "memory": "builds use what the builder has",
    "cloud": "builds run on your own machines",
    "region": "builds run on your own machines",
}


def take_out(where: str, keywords: dict[str, Any], reasons: Mapping[str, str] = WHY_NOTHING) -> None:
    """Remove them from `keywords`, each with a warning at the user's line if it has a value."""
    for name, reason in reasons.items():
        if keywords.pop(name, None) and is_local():
            warn_at_users_line(f"`{name}=` of {where} changes nothing here: {reason}", UserWarning)
