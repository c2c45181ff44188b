"""Settings of the builder."""

from __future__ import annotations

from pathlib import Path

from squall_service.settings import ServiceSettings, settings_config


class BuilderSettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("BUILDER")

    images_dir: Path = Path("/var/lib/squall/images")
    """Folder of the environments that are built; on one machine the same as the agent's."""
    concurrency: int = 2
    """Images that are built at the same time."""
    drain_s: float = 5.0
    """How long builds may go on after the builder was asked to stop; then they are handed back."""
    health_host: str = "127.0.0.1"
    """Address of the health and metrics endpoint, when the builder is a process of its own."""
    health_port: int = 8713
    """Port of the health and metrics endpoint; 0 = any free one."""
