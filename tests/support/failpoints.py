"""A platform of processes in which fail points can be armed."""

from __future__ import annotations

from pathlib import Path

from tests.support.platform import Platform

from squall_verify.failpoints import FailPoints, gone

__all__ = ["FailPoints", "armed_platform", "gone"]


def armed_platform(folder: Path, *, agents: int = 2, gateways: int = 1) -> tuple[Platform, FailPoints]:
    """A platform of processes in which fail points can be armed; not yet entered."""
    points = FailPoints(folder)
    return Platform(processes=True, agents=agents, gateways=gateways, environment=points.environment), points
