"""Secrets as they lie in the bucket `secrets`: names in the clear, values sealed with a key that is not on the bus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from squall.spec import digest
from squall_contracts.envelope import Message
from squall_contracts.objects import environment_token

SECRETS = "secrets"


@dataclass(frozen=True)
class SecretRecord(Message):
    """One secret. Owner: gateway. Agents read those that a container of theirs declares."""

    TYPE: ClassVar[str] = "secret_record"

    secret_id: str
    workspace: str
    environment: str
    name: str
    """Empty for values that a program brought itself (`Secret.from_dict`): those are found by their id."""
    keys: tuple[str, ...]
    sealed: bytes
    """JSON of the values, sealed for `purpose`."""
    created_at: float
    updated_at: float

    @property
    def purpose(self) -> str:
        """What the values are sealed for: exactly this secret."""
        return f"secret {self.workspace}/{self.environment}/{self.name}/{self.secret_id}"


def secret_key(workspace: str, environment: str, name: str) -> str:
    """Key of a secret with a name."""
    return f"{secrets_of(workspace, environment)}{digest(name)[:24]}"


def secrets_of(workspace: str, environment: str) -> str:
    """Prefix of the keys of an environment's secrets with names."""
    return f"name.{workspace}.{environment_token(environment)}."


def unnamed_secret_key(workspace: str, secret_id: str) -> str:
    """Key of values without a name."""
    return f"id.{workspace}.{secret_id}"


def webhook_key_key(workspace: str) -> str:
    """Key of the key that signs a workspace's webhooks."""
    return f"webhook.{workspace}"
