"""What each service is told on this machine: its settings as keywords, the same for both forms.

The one place that knows the settings of the services by name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from squall_bus import Bus, BusSettings
from squall_contracts import roles
from squall_embedded.settings import inherited_environment
from squall_embedded.site import Site
from squall_isolation import machine
from squall_service.run import ServiceContext
from squall_service.settings import ServiceSettings

Run = Callable[[Any, Bus, ServiceContext[Any]], Awaitable[None]]

BACKEND = "both"
"""Of this machine's agents, if nobody says otherwise (docs/decisions/0053)."""
READY_TIMEOUT_S = 90.0
SHORT_DRAIN_S = 1.0
"""Of a temporary platform: its one client has stopped its app, and nobody else can come back."""
PACKAGES: Mapping[str, tuple[str, str]] = {
    # The agent first: it waits for a process of its own, while the gateway computes for 200 ms before it is ready.
    "gpu-agent": ("squall_gpu_agent", "AgentSettings"),
    "scheduler": ("squall_scheduler", "SchedulerSettings"),
    "autoscaler": ("squall_autoscaler", "AutoscalerSettings"),
    "builder": ("squall_builder", "BuilderSettings"),
    "gateway": ("squall_gateway", "GatewaySettings"),
}


def settings_class(name: str) -> type[ServiceSettings]:
    """A service's settings."""
    package, cls = PACKAGES[name]
    found: type[ServiceSettings] = getattr(importlib.import_module(f"{package}.settings"), cls)
    return found


def keywords(name: str, site: Site, number: int = 0) -> dict[str, Any]:
    """What a service is told; `number` tells several gateways or agents apart."""
    drain = {"drain_s": SHORT_DRAIN_S} if site.settings.ephemeral else {}
    match name:
        case "gateway":
            address = {"host": site.settings.host, "port": site.ports[number]}
            sync = site.settings.sync_interval
            return {
                **address,
                "blobs": str(site.blobs),
                "bus_store": str(site.data / "bus"),
                "secrets_key": site.secrets_key,
                "embedded": True,
                "sync_interval": sync,
                **drain,
            }
        case "gpu-agent":
            return {**_agent(site, number), **drain}
        case "scheduler":
            return {"shrink_larger": True}
        case "builder":
            folders = {"images_dir": str(site.images), "blob_dir": str(site.blobs)}
            own = {**folders, "host_bases": True, "secrets_key": site.secrets_key, "gateway_url": site.urls[0], **drain}
            # What agents use: "auto" may turn out to be either.
            formats = {"process": "", "auto": "both", "both": _needed()}.get(_backend(site), "layers")
            return {**own, "formats": formats} if formats else own
        case _:
            return {}


def bus_settings(name: str, site: Site, number: int = 0) -> BusSettings:
    """A service's own connection."""
    if name == "gpu-agent":
        return site.bus(roles.AGENT, site.settings.nodes[number])
    return site.bus(name, "")


def _backend(site: Site) -> str:
    """What was named, by the command line or by a variable; else processes, with sandboxes where one is needed."""
    if site.settings.backend:
        return site.settings.backend
    agent = settings_class("gpu-agent").load()
    return str(agent.backend) if "backend" in agent.model_fields_set else BACKEND  # type: ignore[attr-defined]


def _needed() -> str:
    return "" if machine.lacking() else "needed"


def _agent(site: Site, number: int) -> dict[str, Any]:
    agents = site.settings.agents
    own: dict[str, Any] = {"node": site.settings.nodes[number], "data": str(site.data / "agent")}
    if agents > 1:
        own["data"] = str(site.data / f"agent-{number}")
        # Each offers its part of the machine, so that together they do not promise it twice.
        sizes = settings_class("gpu-agent").load()
        own |= {"cpu": sizes.cores() / agents, "memory_mib": sizes.memory() // agents}  # type: ignore[attr-defined]
        own |= {"gpus": "all" if number == 0 else "none"}
    if site.settings.simulate_gpus:
        own |= {"simulated_gpus": site.settings.simulate_gpus, "gpus": "all"}
    return {
        **own,
        "backend": _backend(site),
        "gateway_url": site.urls[number % len(site.urls)],
        "token": site.service_token,
        "secrets_key": site.secrets_key,
        "blob_dir": str(site.blobs),
        "images_dir": str(site.images),
    }


def environment(name: str, given: Mapping[str, Any], site: Site, number: int = 0) -> dict[str, str]:
    """The environment of a service process: ours, its own bus user, and `given` as its variables."""
    prefix = settings_class(name).prefix()
    own = bus_settings(name, site, number)
    bus = {
        "URL": own.url,
        "USER": own.user or "",
        "PASSWORD": own.password or "",
        "REPLICAS": own.replicas,
        "BATCH_FROM": own.batch_from,
    }
    return {
        **inherited_environment(),
        "TMPDIR": str(site.settings.scratch),
        **{f"SQUALL_BUS_{key}": str(value) for key, value in bus.items()},
        **{
            prefix + key.upper(): value if isinstance(value, str) else json.dumps(value) for key, value in given.items()
        },
    }
