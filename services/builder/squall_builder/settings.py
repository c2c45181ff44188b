"""Settings of the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from squall_images.egress import networks
from squall_service.settings import ServiceSettings, settings_config


class BuilderSettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("BUILDER")

    images_dir: Path = Path("/var/lib/squall/images")
    """Folder of the environments and layers that are built; on one machine the same as the agent's."""
    formats: Literal["environments", "layers", "both"] = "environments"
    """What images become: `environments` for agents whose containers are plain processes, `layers` for those that
    isolate them, `both` where there are both (an image that only layers can be is made as layers alone)."""
    debian_slim: str = ""
    """Name in a registry of the base of `Image.debian_slim`, with `{python}` for the version, such as
    `registry.example/python:{python}-slim`. Empty: bases registered with `squall-images base add`."""
    registry: str = ""
    """`[http://]host[/prefix]` of an OCI registry: where images go so that agents on other machines get them, and where
    names without a host are looked for. Empty: images stay in `images_dir`."""
    registry_auth: str = ""
    """A file of credentials for registries, as `docker login` writes it."""
    keep_gib: float = Field(default=100.0, gt=0)
    """Most that layers may take on this disk; what was used least recently leaves first, and never what runs."""
    allowed: list[str] = Field(default_factory=list)
    """Private networks (CIDR) that builds may reach, as a JSON list: where the mirror of your packages is. Builds reach
    public addresses by HTTP and HTTPS, and nothing else."""
    denied: list[str] = Field(default_factory=list)
    """Public networks (CIDR) that builds may not reach, as a JSON list: where the control plane is, if it has public
    addresses. The bus of this builder is always denied."""
    step_timeout_s: float = Field(default=3600.0, gt=0)
    """Most that one step of an image may take."""
    gateway_url: str = "http://127.0.0.1:8700"
    """Where files that images copy are fetched."""
    token: str = ""
    """What authenticates this builder at the gateway (scope `service`)."""
    blob_dir: str = ""
    """The gateway's local blob folder, when it is on this machine."""
    concurrency: int = 2
    """Images that are built at the same time."""
    drain_s: float = 5.0
    """How long builds may go on after the builder was asked to stop; then they are handed back."""
    health_host: str = "127.0.0.1"
    """Address of the health and metrics endpoint, when the builder is a process of its own."""
    health_port: int = 8713
    """Port of the health and metrics endpoint; 0 = any free one."""

    @field_validator("allowed", "denied")
    @classmethod
    def _are_networks(cls, texts: list[str]) -> list[str]:
        networks(texts)
        return texts
