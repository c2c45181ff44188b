"""Settings of the embedded platform, from its command line. Imports next to nothing: nats-server starts first."""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_AGENTS = 64
MAX_GATEWAYS = 16
ALWAYS = "always"
REGION, SHARDS = "local", 4
"""Of the embedded platform's bus: the defaults of squall_contracts.topology."""
NODE = "local"
"""The only agent's node; several are `local-0`, `local-1` ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedSettings:
    """What one platform on one machine consists of and where it keeps things."""

    data: Path
    """Folder of everything: streams, blobs, images, tokens, logs."""
    state_file: Path
    """Where it says how to reach it, once it is ready."""
    ephemeral: bool = False
    """Ends when standard input closes, and removes its folder."""
    host: str = "127.0.0.1"
    port: int = 0
    """Of the (first) gateway; 0 = any free one."""
    processes: bool = False
    """Each service is a process of its own instead of a task of this one."""
    agents: int = 1
    """Needs `processes` when more than one."""
    gateways: int = 1
    """Needs `processes` when more than one; the others listen on free ports."""
    bus_servers: int = 1
    """1, or 3: a cluster in which everything that must survive a server is on all three. Needs `processes`."""
    sync_interval: str = ALWAYS
    """How often nats-server puts acknowledged writes on disk. Anything but "always" loses acknowledged calls of so long
    with the machine: for development, and said by everything that states durability."""
    nats_server: Path | None = None
    """The server program; None = the one beside the interpreter, else the one on PATH."""

    simulate_gpus: str = ""
    """Devices that each agent offers without having them."""
    backend: str = ""
    """How agents make containers: "process", "sandbox", "gvisor", "docker", "auto", "both"; empty: what
    SQUALL_GPU_AGENT_BACKEND says, else "both"."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the agents' nodes."""
        return (NODE,) if self.agents == 1 else tuple(f"{NODE}-{number}" for number in range(self.agents))

    @property
    def bus_names(self) -> tuple[str, ...]:
        """Names of the bus servers, their folders and their logs."""
        return ("bus", *(f"bus-{number}" for number in range(1, self.bus_servers)))

    @property
    def scratch(self) -> Path:
        """Where temporary files go, so that they are removed with the platform even when it is killed: `tmp` in its
        folder, or where `tmp` points to (`state.use_scratch`)."""
        return Path(os.path.realpath(self.data / "tmp"))


def inherited_environment() -> dict[str, str]:
    """Ours, for a service process, without what would address another bus."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SQUALL_BUS_")}


def parse(arguments: Sequence[str]) -> EmbeddedSettings:
    """The settings that the command line says. Ends the process with status 2 when they make no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if not given.processes and (given.agents > 1 or given.gateways > 1):
        parser.error("--agents and --gateways above 1 need --processes")
    if not given.processes and given.bus_servers > 1:
        parser.error("--bus-servers 3 needs --processes")
    if given.data is None and not given.ephemeral:
        parser.error("--data is needed unless --ephemeral is given")
    data = given.data or Path(tempfile.mkdtemp(prefix="squall-"))
    return EmbeddedSettings(
        data=data.absolute(),
        state_file=(given.state_file or data / "server.json").absolute(),
        ephemeral=given.ephemeral,
        host=given.host,
        port=given.port,
        processes=given.processes,
        agents=given.agents,
        gateways=given.gateways,
        bus_servers=given.bus_servers,
        sync_interval=given.sync_interval,
        nats_server=given.nats_server,
        simulate_gpus=given.simulate_gpus,
        backend=given.backend,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="squall-embedded", description="The whole platform on this machine.")
    parser.add_argument("--data", type=Path, help="folder of everything that it keeps")
    parser.add_argument("--state-file", type=Path, help="where it says how to reach it (default: DATA/server.json)")
    parser.add_argument(
        "--ephemeral", action="store_true", help="end when standard input closes, and remove the folder"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address that gateways listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=0, help="port of the gateway (default: a free one)")
    parser.add_argument("--processes", action="store_true", help="run each service as its own process")
    parser.add_argument("--agents", type=_count("agents", MAX_AGENTS), default=1, metavar="N")
    parser.add_argument("--gateways", type=_count("gateways", MAX_GATEWAYS), default=1, metavar="N")
    parser.add_argument(
        "--bus-servers", type=int, choices=(1, 3), default=1, help="nats-servers; 3 replicate (default: %(default)s)"
    )
    parser.add_argument(
        "--sync-interval",
        type=_interval,
        default=ALWAYS,
        metavar="TIME",
        help="'always' (default), or e.g. 1s: calls acknowledged for less are lost with the machine; development only",
    )
    parser.add_argument(
        "--simulate-gpus", default="", metavar="TYPE:N,..", help="GPUs that each agent offers without having them"
    )
    parser.add_argument(
        "--backend",
        choices=("process", "sandbox", "gvisor", "docker", "auto", "both"),
        default="",
        help="how containers are made (default: as SQUALL_GPU_AGENT_BACKEND says, else both)",
    )
    default = os.environ.get("SQUALL_EMBEDDED_NATS_SERVER")
    parser.add_argument(
        "--nats-server", type=Path, default=Path(default) if default else None, help="nats-server program"
    )
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _interval(text: str) -> str:
    if text != ALWAYS and not re.fullmatch(r"[1-9]\d*(ms|s|m)", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'always' nor a time such as 500ms, 1s or 2m")
    return text


class _count:
    """A number from 1 to `most`."""

    def __init__(self, what: str, most: int) -> None:
        self.what, self.most = what, most

    def __call__(self, text: str) -> int:
        if not text.isdigit() or not 1 <= int(text) <= self.most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {self.what} (1 to {self.most})")
        return int(text)
