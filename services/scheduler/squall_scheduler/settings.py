"""Settings of the scheduler."""

from __future__ import annotations

from squall_service.settings import ServiceSettings, settings_config


class SchedulerSettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("SCHEDULER")

    health_host: str = "127.0.0.1"
    """Address of the health and metrics endpoint, when the scheduler is a process of its own."""
    health_port: int = 8711
    """Port of the health and metrics endpoint; 0 = any free one."""
    tick_s: float = 1.0
    """How often what waits for time to pass is looked at. Facts are acted on at once."""
    shrink_larger: bool = False
    """Give a container that asks for more than any machine has half of a machine, and say so in its log. For a platform
    of one machine, where a program of a larger one shall run too. Otherwise such a container waits for a machine."""
    reconcile: bool = True
    """Take part in reconciling shards: expire calls, bring back what the queue has lost."""
