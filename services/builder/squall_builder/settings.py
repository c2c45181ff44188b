"""Settings of the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from squall_images.egress import networks
from squall_service.sealing import check_keys
from squall_service.settings import ServiceSettings, settings_config


class BuilderSettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("BUILDER")

    images_dir: Path = Path("/var/lib/squall/images")
    """Folder of the environments and layers that are built; on one machine the same as the agent's."""
    formats: Literal["environments", "layers", "both", "needed"] = "environments"
    """What images become: `environments` for agents whose containers are plain processes, `layers` for those that
    isolate them, `both` where there are both (an image that only layers can be is made as layers alone); `needed` where
    agents have the backend `both`: layers for images that only layers can be, and for others once a sandbox asks."""
    debian_slim: str = ""
    """Name in a registry of the base of `Image.debian_slim`, with `{python}` for the version, such as
    `registry.example/python:{python}-slim`. Empty: bases registered with `squall-images base add`."""
    host_bases: bool = False
    """Make bases that `Image.debian_slim` lacks of this machine's interpreters, when they are first asked for. For
    images that install packages with apt they have it, by debootstrap, if that is installed; others have none.
    `squall up` and `squall run` have it on."""
    registry: str = ""
    """`[http://]host[/prefix]` of an OCI registry: where images go so that agents on other machines get them, and where
    names without a host are looked for. Empty: images stay in `images_dir`."""
    registry_auth: str = ""
    """A file of credentials for registries, as `docker login` writes it. They are the platform's: for its own images
    and `debian_slim`."""
    registry_shared: list[str] = Field(default_factory=list)
    """`host[/prefix]` that every user may pull from with these credentials, as a JSON list. For other names users give
    their own (`from_registry(secret=)`)."""
    docker_host: str = ""
    """A Docker engine for Dockerfiles: `unix:///var/run/docker.sock` or `tcp://host:port`. Its builds
    run as that engine's containers do, not in a build room. Empty: images of Dockerfiles cannot be built."""
    docker_network: Literal["none", "default"] = "none"
    """Network of RUN lines of Dockerfiles: `default` is the engine's own, which may reach your control plane."""
    keep_gib: float = Field(default=100.0, gt=0)
    """Most that layers may take on this disk; what was used least recently leaves first, and never what runs."""
    cache_gib: float = Field(default=20.0, ge=0)
    """Most that caches of uv, byte-code and apt may take, apart from what layers share with them."""
    allowed: list[str] = Field(default_factory=list)
    """Private networks (CIDR) that builds may reach, as a JSON list: where the mirror of your packages is. Builds reach
    public addresses by HTTP and HTTPS, and nothing else."""
    denied: list[str] = Field(default_factory=list)
    """Public networks (CIDR) that builds may not reach, as a JSON list: where the control plane is, if it has public
    addresses. The bus of this builder is always denied."""
    step_timeout_s: float = Field(default=3600.0, gt=0)
    """Most that one step of an image may take."""
    step_memory_mib: int = Field(default=8192, ge=0)
    """Most memory of one step, files in memory included; 0 = no limit."""
    step_processes: int = Field(default=4096, ge=0)
    """Most processes and threads of one step; 0 = no limit."""
    step_disk_mib: int = Field(default=51200, ge=0)
    """Most that one step may write; 0 = no limit."""
    gateway_url: str = "http://127.0.0.1:8700"
    """Where files that images copy are fetched."""
    token: str = ""
    """What authenticates this builder at the gateway (scope `service`)."""
    secrets_key: Annotated[str, AfterValidator(check_keys)] = ""
    """Key with which secrets are encrypted, as gateways and agents have it. Empty: build steps cannot have secrets."""
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
