"""Settings of one verification, from its command line; and the environment that processes of the harness inherit."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_SECONDS = 24 * 3600.0
MAX_SEED = 2**31
DEFAULT_SECONDS = 60.0
FAULTS, MIXED = "faults", "mixed"
PROCESS, SANDBOX = "process", "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """One run."""

    seed: int
    """Of the plan of operations and the plan of faults."""
    seconds: float = DEFAULT_SECONDS
    """How long calls are made and faults injected; start, healing and checks come on top."""
    faults: tuple[str, ...] = ()
    """Names of the only faults to inject; empty = every one that this machine can."""
    agents: int = 2
    gateways: int = 2
    bus_servers: int = 1
    keep: Path | None = None
    """Where the evidence stays; None = it is removed after a run without violation."""
    backend: str = PROCESS
    """Of the agents' containers."""
    load: str = FAULTS
    as_json: bool = False
    list_faults: bool = False

    @property
    def command(self) -> str:
        """What runs the same plan again."""
        chosen = f" --faults {','.join(self.faults)}" if self.faults else ""
        sizes = "" if (self.agents, self.gateways) == (2, 2) else f" --agents {self.agents} --gateways {self.gateways}"
        load = "" if self.load == FAULTS else f" --load {self.load}"
        bus = "" if self.bus_servers == 1 else f" --bus-servers {self.bus_servers}"
        backend = "" if self.backend == PROCESS else f" --backend {self.backend}"
        return f"squall verify --seed {self.seed} --seconds {self.seconds:g}{load}{chosen}{sizes}{bus}{backend}"


def neutral_environment() -> dict[str, str]:
    """Ours, without anybody's settings of squall or OpenTelemetry."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("SQUALL_", "OTEL_"))}
    mine.pop("PYTHONDONTWRITEBYTECODE", None)
    return mine


def parse(arguments: Sequence[str]) -> VerifySettings:
    """The settings that the command line says. Ends the process with status 2 when they make no sense."""
    parser = _parser()
    given = parser.parse_args(arguments)
    seconds = given.seconds if given.seconds is not None else DEFAULT_SECONDS
    if given.minutes is not None:
        if given.seconds is not None:
            parser.error("--minutes and --seconds exclude each other")
        seconds = given.minutes * 60
    if not 1 <= seconds <= MAX_SECONDS:
        parser.error(f"{seconds:g} seconds is not a duration of a run (1 s to 24 h)")
    if given.backend == SANDBOX and os.geteuid():
        parser.error("--backend sandbox needs root")
    if given.load == MIXED and given.faults:
        parser.error("a mixed load has faults of its own: --faults is for --load faults")
    return VerifySettings(
        seed=given.seed if given.seed is not None else secrets.randbelow(10**6),
        seconds=seconds,
        faults=tuple(name for name in given.faults.split(",") if name),
        agents=given.agents,
        gateways=given.gateways,
        bus_servers=given.bus_servers,
        keep=given.keep.absolute() if given.keep else None,
        backend=given.backend,
        load=given.load,
        as_json=given.json,
        list_faults=given.list_faults,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="squall verify", description="Runs a real platform under seeded faults and checks what it promises."
    )
    parser.add_argument("--seed", type=_seed, help="number that decides the plan (default: a random one, printed)")
    parser.add_argument("--minutes", type=float, metavar="M", help="how long to make calls and inject faults")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help=f"the same in seconds (default: {DEFAULT_SECONDS:g})"
    )
    parser.add_argument(
        "--load",
        choices=(FAULTS, MIXED),
        default=FAULTS,
        help="faults: under random faults; mixed: deploys, rollbacks, scaling, a node drained, a node lost, "
        "and a summary by form of call (default: %(default)s)",
    )
    parser.add_argument("--faults", default="", metavar="A,B", help="only these; see --list-faults")
    parser.add_argument(
        "--list-faults", action="store_true", help="print the faults, and which this machine can inject"
    )
    parser.add_argument("--agents", type=_count, default=2, metavar="N", help="default: %(default)s, at least 2")
    parser.add_argument("--gateways", type=_count, default=2, metavar="N", help="default: %(default)s, at least 2")
    parser.add_argument(
        "--bus-servers", type=int, choices=(1, 3), default=1, help="nats-servers; 3 replicate (default: %(default)s)"
    )
    parser.add_argument(
        "--backend",
        choices=(PROCESS, SANDBOX),
        default=PROCESS,
        help="of containers; sandbox needs root and Linux (default: %(default)s)",
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the evidence in this folder")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed (0 to {MAX_SEED})")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not 2 to 16")
    return int(text)
