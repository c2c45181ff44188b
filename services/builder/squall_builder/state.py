"""What the builder decides on, as frozen values. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is stored of an image."""

    state: str = ""
    """See `ImageRecord.state`; empty = nothing."""
    updated_at: float = 0.0
    removed_until: float = 0.0
    """Until then a builder may be removing it; 0 = none does."""
    manifest: str = ""
    """See `ImageRecord.manifest`."""
