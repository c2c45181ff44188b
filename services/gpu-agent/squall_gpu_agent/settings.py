"""Settings of the agent: SQUALL_GPU_AGENT_* in the environment."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from squall_gpu_agent.cdi import DIRECTORIES
from squall_service.sealing import check_keys
from squall_service.settings import ServiceSettings, settings_config


class AgentSettings(ServiceSettings):
    """What an operator may choose."""

    model_config = settings_config("GPU_AGENT")

    node: str = ""
    """Name of this machine, unique in the region; empty = the host name. The same at each start: an agent cleans up
    what its earlier life left behind under that name."""
    data: str = "/var/lib/squall/agent"
    """Folder for code, images and containers' scratch files."""
    images_dir: str = ""
    """Folder of Python environments, which a builder on this machine may share; empty = below `data`."""
    backend: Literal["process", "sandbox", "gvisor", "docker", "auto", "both"] = "process"
    """How containers are made: as plain processes, which isolates nothing; in sandboxes, which needs root and Linux
    5.19; in sandboxes with a kernel of their own, which needs gVisor's `runsc` besides; by a container engine, which
    needs root too; "auto" = in sandboxes if one can be made here, else as processes; "both" = as processes, and in
    sandboxes those of functions that demand isolation or whose image cannot be had otherwise, if the machine has them.
    `squall up` and `squall run` take "both" if nothing is said."""
    docker_socket: str = "/var/run/docker.sock"
    """Socket of the container engine of this machine, for the backend `docker`."""
    runsc: str = "runsc"
    """gVisor's program, by its name on the PATH or by its path."""
    gvisor_platform: Literal["", "systrap", "ptrace"] = ""
    """How gVisor catches system calls; empty = systrap where `runsc` has it, else ptrace."""
    gvisor_snapshots_mib: int = Field(default=10240, ge=0)
    """Most that the memory of initialised containers takes on this disk, from which gVisor restores others; what was
    used least recently leaves first, and never what runs. 0 = each container of gVisor starts anew."""
    registry: str = ""
    """`[http://]host[/prefix]` of the OCI registry that builders put layered images into; empty = only images in
    `images_dir`."""
    registry_auth: str = ""
    """A file of credentials for registries, as `docker login` writes it; they need no more than to read."""
    keep_gib: float = Field(default=100.0, gt=0)
    """Most that layered images may take on this disk; what was used least recently leaves first, and never what
    runs."""
    sandbox_processes: int = Field(default=2048, ge=16)
    """Most processes and threads of one sandbox."""
    sandbox_network: bool = True
    """Whether sandboxes have a way out to public addresses at all; needs nftables."""
    sandbox_allowed: str = ""
    """Private networks that sandboxes may reach all the same, as in `10.1.2.0/24,10.1.3.7/32`."""
    sandbox_refused: str = ""
    """Public networks that they may not reach: those of the control plane, if it has any."""
    sandbox_pool: str = "100.72.0.0/16"
    """Addresses that sandboxes get, two each; used inside of this machine only."""
    cpu: float = Field(default=0.0, ge=0)
    """Cores that containers may request in total; 0 = all that this process may use."""
    memory_mib: int = Field(default=0, ge=0)
    """Memory that containers may request in total; 0 = all of the machine's."""
    max_containers: int = Field(default=256, ge=1)
    """Most containers at once."""
    gpus: str = "all"
    """Devices to offer: "all", "none", or numbers and uuids, as in `0,2`."""
    gpu_read_s: float = Field(default=2.0, gt=0)
    """How often devices are read again: memory, programs, health. A lost one is noticed by that."""
    simulated_gpus: str = ""
    """Devices to report instead of the machine's own, for trying out placement: `H100:2,L4:1`. They exist in name only,
    and are marked as simulated wherever they are shown."""
    cdi_dirs: str = DIRECTORIES
    """Folders of CDI files, with colons between: what containers in sandboxes are given of the host to use a device."""
    preemptible: bool = False
    """Whoever owns this machine may take it away at short notice (a spot machine): functions that are declared
    `nonpreemptible` are never placed on it."""
    preemption_file: str = ""
    """A file whose appearance is the notice that the machine will be taken away; it may contain the seconds that are
    left. Implies `preemptible`."""
    preemption_notice_s: float = Field(default=30.0, ge=1)
    """Seconds from a notice (the file, or SIGTERM on a preemptible machine) to the machine's end."""
    zone: str = ""
    """Zone of this machine, for placement."""
    gateway_url: str = "http://127.0.0.1:8700"
    """Where blobs are moved and where the calls of containers go."""
    token: str = ""
    """What authenticates this agent at the gateway (scope `service`)."""
    secrets_key: Annotated[str, AfterValidator(check_keys)] = ""
    """Key with which secrets are encrypted: base64 of 32 bytes, the same for gateways and agents. Several, separated by
    commas: the first encrypts, all decrypt. Empty: secrets cannot be used."""
    volume_cache_mib: int = Field(default=0, ge=0)
    """Files of volumes that are kept on this machine for the next container; what is mounted is never removed, and does
    not count against it. When the disk has no room for another volume, less is kept. 0 = a fifth of the disk."""
    blob_dir: str = ""
    """The gateway's local blob folder, when it is on this machine: blobs then do not travel over HTTP."""
    web_host: str = ""
    """Address to take web requests on from gateways of other machines; empty = a unix socket, for gateways on this one.
    The connection is authenticated, not encrypted: a private network, please."""
    web_port: int = Field(default=8714, ge=0, le=65535)
    """Port for that; 0 = any free one."""
    web_advertise: str = ""
    """Name or address under which gateways reach `web_host`; empty = the host name."""
    prefetch_ms: float = Field(default=50.0, ge=0)
    """Calls leased ahead, as milliseconds of measured work for each slot; 0 = none."""
    stop_grace_s: float = Field(default=2.0, ge=0)
    """How long user code may take to end after a cancel or its timeout, before its container is killed."""
    drain_s: float = Field(default=25.0, ge=0)
    """How long running inputs may take to finish when the agent stops; then they go back to the queue."""
    health_host: str = "127.0.0.1"
    """Address of the health and metrics endpoint, when the agent is a process of its own."""
    health_port: int = Field(default=8713, ge=0, le=65535)
    """Port of the health and metrics endpoint; 0 = any free one."""

    def node_name(self) -> str:
        """The node's name as a token of subjects and keys."""
        name = self.node or socket.gethostname()
        return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-") or "node"

    @field_validator("sandbox_allowed", "sandbox_refused", "sandbox_pool")
    @classmethod
    def _networks(cls, value: str) -> str:
        for network in networks(value):
            ipaddress.IPv4Network(network)
        return value

    def can_be_taken_away(self) -> bool:
        """Whether this machine is preemptible."""
        return self.preemptible or bool(self.preemption_file)

    def cores(self) -> float:
        """Cores to offer."""
        return self.cpu or float(len(os.sched_getaffinity(0)))

    def memory(self) -> int:
        """Memory to offer, in MiB."""
        return self.memory_mib or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)


def networks(listed: str) -> tuple[str, ...]:
    """Of a list with commas."""
    return tuple(part.strip() for part in listed.split(",") if part.strip())
