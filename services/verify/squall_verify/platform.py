"""The real platform as processes, looked at from outside: start, find, hurt and restart its parts.

Owns one folder: data, state file, temporary files and user's home of a platform, and every process that has that folder
in its environment, command line or working directory. Knows nothing about what the services do.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from squall import errors
from squall.errors import LocalPlatformError
from squall_bus import BusSettings
from squall_contracts import roles
from squall_verify.processes import Process, belonging_to, descendants, end_with_parent, process
from squall_verify.settings import neutral_environment
from squall_verify.waiting import eventually

READY_S = 60.0
TOLD = 2000
"""Characters of its log that an error of the platform has in it."""
BUS_TIMEOUT_S = 30.0
"""Servers of a cluster may be electing."""
STOP_S = 30.0
HEALTH_S = 2.0


@dataclass(frozen=True, slots=True)
class Part:
    """One service of the platform as it is running now."""

    name: str
    pid: int
    url: str = ""
    """Of gateways."""
    health: str = ""
    """Answers 200 when it is ready; empty for nats-server."""


@dataclass
class Platform:
    """`with Platform(processes=True, agents=2) as platform: platform.run("prog.py")`; it leaves nothing behind."""

    processes: bool = False
    """Each service is its own process; otherwise all of them are tasks of one."""
    agents: int = 1
    gateways: int = 1
    bus_servers: int = 1
    """3 replicate."""
    port: int = 0
    arguments: tuple[str, ...] = ()
    """More for squall_embedded's command line."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More for the services' environment."""

    def __post_init__(self) -> None:
        # Short: unix sockets in it may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="sq-"))
        self.data = self.folder / "data"
        self.temporary = self.folder / "tmp"
        self.home = self.folder / "home"
        for folder in (self.data, self.temporary, self.home):
            folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self._announced: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.remove()

    # --- addresses

    @property
    def url(self) -> str:
        """Of the first gateway."""
        return str(self._announced["url"])

    @property
    def token(self) -> str:
        return str(self._announced["token"])

    @property
    def pid(self) -> int:
        """Of the process that runs or watches the services."""
        if self._process is None:
            raise LocalPlatformError("the platform is not running")
        return self._process.pid

    def check(self) -> None:
        """Raises `LocalPlatformError` when the process that watches the services has ended by itself."""
        if self._process is not None and (status := self._process.poll()) is not None:
            told = (self.folder / "platform.log").read_text(errors="replace")[-TOLD:]
            raise LocalPlatformError(f"the platform ended by itself with status {status}: {told}")

    def parts(self) -> list[Part]:
        """What is running now; a part that was started again has a new pid."""
        try:
            body = json.loads((self.folder / "server.json").read_text())
        except FileNotFoundError:
            return []
        return [
            Part(p["name"], int(p["pid"]), str(p.get("url") or ""), str(p.get("health") or ""))
            for p in body["processes"]
        ]

    def part(self, name: str) -> Part:
        """The part of that name, e.g. "bus", "scheduler", "gpu-agent-1"."""
        found = {part.name: part for part in self.parts()}
        if name not in found:
            raise LookupError(f"no part {name!r}; there are {sorted(found)}")
        return found[name]

    @property
    def front(self) -> Part:
        """The gateway that clients use unless told otherwise."""
        return next(part for part in self.parts() if part.url == self.url)

    def ready(self) -> bool:
        """Whether every part runs and says that it is ready."""
        running = {owned.pid for owned in self.owned() if owned.state != "T"}
        parts = self.parts()
        return all(part.pid in running for part in parts) and all(answers(part.health) for part in parts if part.health)

    def parts_named(self, prefix: str) -> list[Part]:
        """Every part whose name begins so: all agents, all gateways."""
        return [part for part in self.parts() if part.name.startswith(prefix)]

    def owned(self) -> list[Process]:
        """Every process of the platform: services, nats-server, templates, containers. What is in a sandbox knows
        nothing of the folder: it is found below its agent."""
        named = belonging_to(self.folder)
        if "sandbox" not in self.arguments:
            return named
        known = {each.pid for each in named}
        below = [each for part in self.parts_named("gpu-agent") for each in descendants(part.pid)]
        return [*named, *(each for each in below if each.pid not in known)]

    def runners(self) -> list[Process]:
        """Templates and containers."""
        return [p for p in self.owned() if p.is_runner]

    def log(self) -> str:
        """What the services have logged."""
        return "\n".join(file.read_text(errors="replace") for file in sorted(self._log_files()))

    def _log_files(self) -> Iterator[Path]:
        """Not below the stores of nats-servers, which make and remove folders all the time."""
        for folder, below, names in os.walk(self.folder):
            below[:] = [name for name in below if name != "jetstream"]
            yield from (Path(folder, name) for name in names if name.endswith(".log"))

    def bus_settings(self) -> BusSettings:
        """A connection of our own to its nats-server, with every right."""
        config = (self.data / "bus" / "nats.conf").read_text()
        ports = sorted(self.data.glob("bus*/run/*.ports"))
        if not ports:
            raise LocalPlatformError("nats-server is just being started")
        found = re.search(rf'user: "{roles.ADMIN}", password: "([^"]+)"', config)
        if found is None:
            raise LocalPlatformError(f"no user {roles.ADMIN} in {self.data / 'bus' / 'nats.conf'}")
        return BusSettings(
            url=",".join(json.loads(each.read_text())["nats"][0] for each in ports),
            user=roles.ADMIN,
            password=found[1],
            name="test",
            connect_timeout_s=BUS_TIMEOUT_S,
            inbox_prefix=roles.inbox_prefix(roles.ADMIN),
        )

    # --- life

    def start(self) -> None:
        """Start on the present data and return when the gateway answers. Raises what the platform said it died of."""
        command = [sys.executable, "-P", "-m", "squall_embedded", "--data", str(self.data)]
        command += ["--state-file", str(self.folder / "server.json"), "--port", str(self.port)]
        if self.processes:
            command += ["--processes", "--agents", str(self.agents), "--gateways", str(self.gateways)]
            command += ["--bus-servers", str(self.bus_servers)]
        with (self.folder / "platform.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env={**self.neutral_environment(), **self.environment},
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 — one prctl, looked up before the fork
            )
        self._announced = self._await_announcement(self._process)
        self.port = int(self.url.rpartition(":")[2])  # a restart must answer at the same address

    def _await_announcement(self, child: subprocess.Popen[bytes]) -> dict[str, Any]:
        if child.stdout is None:
            raise LocalPlatformError("the platform was started without a pipe")
        until, line = time.monotonic() + READY_S, b""
        while not line.endswith(b"\n"):
            if select.select([child.stdout], [], [], 0.1)[0]:
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise LocalPlatformError(
                        f"the platform ended with {child.wait(STOP_S)} while starting:\n{self.log()}"
                    )
                line += chunk
            elif time.monotonic() > until:
                raise LocalPlatformError(f"the platform is not ready after {READY_S} s:\n{self.log()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise errors.from_wire(answer["error"])
        return answer

    def stop(self) -> None:
        """SIGTERM, as `squall down` does. Fails when that does not end everything in time."""
        child = self._process
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LocalPlatformError(f"the platform did not stop within {STOP_S} s:\n{self.log()[-4000:]}") from None
        self._forget()
        eventually(lambda: not self.owned(), within_s=5, what=lambda: f"left behind: {self.owned()}")

    def kill(self) -> None:
        """SIGKILL to every process of the platform at once: a power cut, as far as processes go."""
        for present in self.owned():
            present.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)
        self._forget()
        eventually(lambda: not self.owned(), within_s=5, what=lambda: f"not killed: {self.owned()}")

    def _forget(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def signal(self, name: str, which: signal.Signals) -> Part:
        """Signal a part. Returns it as it was."""
        part = self.part(name)
        os.kill(part.pid, which)
        return part

    def restarted(self, part: Part, *, within_s: float = 20.0) -> Part:
        """Waits until a part that was killed runs again under a new pid."""

        def again() -> Part | None:
            present = {p.name: p for p in self.parts()}.get(part.name)
            return present if present and present.pid != part.pid and process(present.pid) else None

        return eventually(again, within_s=within_s, what=f"{part.name} is not started again")

    def ready_again(self, part: Part, *, within_s: float) -> Part:
        """Waits until a part that was killed has been started again and says that it is ready."""

        def again() -> Part | None:
            present = {p.name: p for p in self.parts()}.get(part.name)
            if present is None or present.pid == part.pid or process(present.pid) is None:
                return None
            return present if not present.health or answers(present.health) else None

        return eventually(again, within_s=within_s, what=f"{part.name} is not ready again")

    def remove(self) -> None:
        """End what is left and delete the folder."""
        for left in self.owned():
            left.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_S)
            self._forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- users of it

    def neutral_environment(self) -> dict[str, str]:
        """Ours without anybody's settings, and with temporary files and home inside the folder."""
        return {**neutral_environment(), "TMPDIR": str(self.temporary), "SQUALL_HOME": str(self.home)}

    def client_environment(self, *, gateway: Part | None = None, **more: str) -> dict[str, str]:
        """Environment of a program that uses this platform (through that gateway)."""
        address = {"SQUALL_SERVER_URL": gateway.url if gateway else self.url, "SQUALL_TOKEN": self.token}
        return {**self.neutral_environment(), **address, **more}


def answers(url: str) -> bool:
    """Whether a GET of that URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=HEALTH_S) as response:
            return bool(response.status == 200)
    except OSError:
        return False
