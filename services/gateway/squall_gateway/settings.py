"""Settings of the gateway: SQUALL_GATEWAY_* in the environment."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from squall.spec import MAX_PAYLOAD_BYTES
from squall_gateway.policy.webhook_targets import networks as target_networks
from squall_gateway.policy.webhook_tries import SCHEDULE_S
from squall_service.sealing import check_keys
from squall_service.settings import ServiceSettings, settings_config


def networks(text: str) -> str:
    """Addresses and networks without spaces between them. Raises `ValueError` for what is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        ip_network(part)
    return ",".join(parts)


def _checked_networks(texts: list[str]) -> list[str]:
    target_networks(texts)
    return texts


class GatewaySettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("GATEWAY")

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback makes the API reachable for others."""
    port: int = Field(default=8700, ge=0, le=65535)
    """Port of the HTTP API; 0 = any free one, named in the log."""
    blobs: str = "/var/lib/squall/blobs"
    """Where payloads above 64 KiB, code bundles and volumes lie, each workspace's apart: a folder, or a URL such as
    s3://bucket/prefix."""
    blob_options: dict[str, str] = Field(default_factory=dict)
    """For a URL: endpoint, region, access_key_id and so on, as obstore names them (a JSON object)."""
    secrets_key: Annotated[str, AfterValidator(check_keys)] = ""
    """Key with which secrets are encrypted: base64 of 32 bytes, the same for gateways and agents. Several, separated by
    commas: the first encrypts, all decrypt. Empty: secrets cannot be used."""
    bus_store: str = ""
    """Folder of nats-server's store if that is on this machine: calls are refused (507) if its disk is nearly full."""
    reserve_mib: int = Field(default=256, ge=1)
    """Free space on the disks of `bus_store` and of a folder of blobs under which new calls are refused."""
    max_pending: int = Field(default=1_000_000, ge=1)
    """Inputs of one pool that may wait or run; beyond that calls are refused."""
    max_pending_sync: int = Field(default=25_000, ge=1)
    """The same for inputs that a caller waits for: remote, generator and map."""
    max_payload_bytes: int = Field(default=MAX_PAYLOAD_BYTES, ge=0)
    """Largest argument, result or code bundle."""
    volume_grace_s: float = Field(default=86_400.0, ge=0)
    """How long blocks of volumes stay that no version needs any more: readers of older versions, and uploads that are
    not committed yet, have so much time. Short times (below four hours) are for tests."""
    volume_collect_s: float = Field(default=21_600.0, gt=0)
    """How often such blocks are looked for; `squall volume gc` does it now."""
    drain_s: float = Field(default=10.0, ge=0)
    """How long a stopping gateway lets open requests finish."""
    web_url: str = ""
    """Where clients find this gateway, as in `https://squall.example.com`: web functions have addresses below it and,
    with wildcard DNS, below `*.squall.example.com`. Empty = the address it listens on, and `*.localhost`."""
    web_hold_s: float = Field(default=150.0, gt=0)
    """How long a web request may wait for a container before it is answered by 503."""
    web_max_held: int = Field(default=5000, ge=1)
    """Web requests that may wait for containers at once; beyond that they are answered by 503 at once."""
    web_redirect_s: float = Field(default=0.0, ge=0)
    """After how long without an answer a client is sent away by 303, to ask again for it; 0 = it waits as long as the
    function's timeout allows. A client may ask for it itself: `Prefer: respond-async, wait=60`."""
    web_max_parameter_sets: int = Field(default=1000, ge=1)
    """Sets of class parameters in URLs, of one version of a class; each has a pool of its own. Others: 429."""
    trusted_proxies: Annotated[str, AfterValidator(networks)] = ""
    """Addresses and networks, separated by commas, of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` say who a
    client is. Of everybody else they are not believed, nor passed on."""
    webhook_allowed: Annotated[list[str], AfterValidator(_checked_networks)] = Field(default_factory=list)
    """Private networks or addresses that webhooks may be sent to (a JSON list, such as ["10.1.0.0/16"]); there with any
    port. Public addresses may have the ports 80, 443, 8080 and 8443."""
    webhook_retries_s: tuple[Annotated[float, Field(gt=0, le=7 * 86400)], ...] = SCHEDULE_S
    """Waits before the tries of a webhook after the first (a JSON list). After the last it is a dead letter."""
    trace_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of the calls of which spans are recorded, from 0 to 1. Decided where a trace begins; a call within another
    trace (of the calling program or container) is recorded if that one is."""
    otlp_endpoint: str = ""
    """Collector that gets the spans of calls; empty = the one of SQUALL_TELEMETRY_OTLP_ENDPOINT, if any."""
    otlp_protocol: Literal["grpc", "http"] = "grpc"
    """How to speak to it."""
    otlp_headers: dict[str, str] = Field(default_factory=dict)
    """Sent with every export, e.g. an API key (a JSON object)."""
    sync_interval: str = "always"
    """JetStream's sync_interval, as nats-server was started with it: told to clients as durability of calls."""
    embedded: bool = False
    """Set by the embedded platform, and told to clients."""
