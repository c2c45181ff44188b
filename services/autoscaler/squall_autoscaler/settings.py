"""Settings of the autoscaler."""

from __future__ import annotations

from squall_service.settings import ServiceSettings, settings_config


class AutoscalerSettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("AUTOSCALER")

    health_host: str = "127.0.0.1"
    """Address of the health and metrics endpoint, when the autoscaler is a process of its own."""
    health_port: int = 8712
    """Port of the health and metrics endpoint; 0 = any free one."""
    tick_s: float = 1.0
    """How often every pool is looked at. First calls are acted on at once."""
    hot_tick_s: float = 0.2
    """How often pools are looked at whose inputs wait for containers."""
