"""What the builder decides on, as frozen values. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is stored of an image."""

    state: str = ""
    """"building", "ready" or "failed"; empty = nothing."""
    updated_at: float = 0.0
