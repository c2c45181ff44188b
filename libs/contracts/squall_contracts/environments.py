"""Environments: parts of a workspace in which names are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from squall_contracts.envelope import Message
from squall_contracts.objects import environment_token

DEFAULT_ENVIRONMENT = "main"
"""Every workspace has it, without a record."""


@dataclass(frozen=True)
class EnvironmentRecord(Message):
    """One environment. Bucket `objects`; owner: gateway."""

    TYPE: ClassVar[str] = "environment_record"

    name: str
    workspace: str
    created_at: float


def environment_key(workspace: str, name: str) -> str:
    """Key of an environment."""
    return f"{environments_of(workspace)}{environment_token(name)}"


def environments_of(workspace: str) -> str:
    """Prefix of the keys of a workspace's environments."""
    return f"environment.{workspace}."
