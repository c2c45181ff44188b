"""Settings: one frozen model per service, read once, from the environment. An unknown name stops the start."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from squall.errors import InvalidError
from squall_bus import BusSettings
from squall_bus.settings import BATCH_FROM
from squall_contracts import roles

ROOT = "SQUALL_"


class SettingsError(InvalidError):
    """A setting is unknown or has a value that cannot be used."""

    code = "settings"
    fix = "Correct or remove the environment variable; docs/reference/settings.md lists all of them."


@dataclass(frozen=True, slots=True)
class SettingDoc:
    """One row of the reference."""

    name: str
    """The environment variable."""
    type: str
    default: str
    description: str


def settings_config(prefix: str) -> SettingsConfigDict:
    """`model_config` of a settings model whose variables start with `SQUALL_<PREFIX>_`."""
    return SettingsConfigDict(
        env_prefix=f"{ROOT}{prefix.upper()}_",
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,
        use_attribute_docstrings=True,
    )


class ServiceSettings(BaseSettings):
    """Base of all settings models.

    class GatewaySettings(ServiceSettings):
        model_config = settings_config("GATEWAY")
        port: int = 8700
        \"\"\"Port of the HTTP API.\"\"\"
    """

    model_config = settings_config("SERVICE")

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment once; `given` wins over it. SettingsError names the variable and the bad value."""
        cls.refuse_unknown(os.environ)
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_explain(cls, error)) from error

    @classmethod
    def prefix(cls) -> str:
        return str(cls.model_config.get("env_prefix", ""))

    @classmethod
    def names(cls) -> dict[str, str]:
        """Environment variable -> field."""
        return {cls.prefix() + field.upper(): field for field in cls.model_fields}

    @classmethod
    def refuse_unknown(cls, environment: Mapping[str, str]) -> None:
        """A misspelled variable would otherwise be a setting that silently does nothing."""
        known = cls.names()
        for name in environment:
            if name.upper().startswith(cls.prefix()) and name.upper() not in known:
                near = difflib.get_close_matches(name.upper(), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(f"unknown setting {name}{hint}", name=name)

    @classmethod
    def describe(cls) -> list[SettingDoc]:
        """Rows for docs/reference/settings.md."""
        return [
            SettingDoc(
                name=name,
                type=_type_name(cls.model_fields[field].annotation),
                default="(required)" if cls.model_fields[field].is_required() else _shown(cls, field),
                description=cls.model_fields[field].description or "",
            )
            for name, field in cls.names().items()
        ]


def _shown(cls: type[ServiceSettings], field: str) -> str:
    default = cls.model_fields[field].get_default(call_default_factory=True, validated_data={})
    return "" if default is None else str(default)


def _type_name(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None)
    return name if name and not getattr(annotation, "__args__", None) else str(annotation).replace("typing.", "")


def _explain(cls: type[ServiceSettings], error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        name = cls.prefix() + place.upper()
        value = "" if problem["type"] == "missing" else f" = {problem['input']!r}"
        problems.append(f"{name}{value}: {problem['msg']}")
    return "; ".join(problems)


class BusConnection(ServiceSettings):
    """How every service reaches the bus."""

    model_config = settings_config("BUS")

    url: str = "nats://127.0.0.1:4222"
    """Address of the bus, or several separated by commas."""
    user: str | None = None
    """Name of this service's own bus user."""
    password: str | None = None
    region: str = "local"
    """Region that this service belongs to."""
    shards: int = 4
    """Number of shards of the region; the same everywhere, and never changed later."""
    replicas: int = 1
    """Copies of what must survive a server: 3 in a cluster."""
    batch_from: int = Field(BATCH_FROM, ge=2)
    """Records from which on they go to the bus as one atomic batch: 5 is right where a server that is alone stages
    batches in memory, as the embedded platform lets it (docs/explanation/bus.md)."""
    dev: bool = False
    """Accept an older server, with a loud warning."""
    connect_timeout_s: float = 30.0
    """How long to wait for the bus at the start."""
    tls_ca: str | None = None
    """CA file; setting it turns TLS on."""
    tls_cert: str | None = None
    tls_key: str | None = None

    def bus_settings(self, role: str, node: str = "") -> BusSettings:
        """The connection of one role (of a node's agent): its own name and its own inbox prefix."""
        return BusSettings(
            name=f"squall-{roles.user_name(role, node)}",
            inbox_prefix=roles.inbox_prefix(role, node),
            **{field: getattr(self, field) for field in type(self).model_fields},
        )
