"""The real platform as processes, for tests that look at it from outside: start, find, hurt and restart its parts.

Owns one folder: data, state file, temporary files and user's home of a platform, and every process that has that folder
in its environment, command line or working directory. Knows nothing about what the services do.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from squall import errors
from squall_bus import BusSettings

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
SQUALL = Path(sys.executable).with_name("squall")
READY_S = 60.0
STOP_S = 30.0
POLL_S = 0.01
_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl


def eventually(check: Callable[[], T | None], *, within_s: float = 10.0, what: object = "") -> T:
    """Call `check` until it returns something true, and hand that back. `what` or its answer explains a failure."""
    until = time.monotonic() + within_s
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > until:
            told = what() if callable(what) else what
            raise AssertionError(f"not within {within_s} s: {told or check}; last answer {value!r}")
        time.sleep(POLL_S)


# ---------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class Process:
    """One entry of the process table."""

    pid: int
    parent: int
    command: str
    state: str
    """As in /proc/PID/stat: R, S, T (stopped), Z (ended, not yet waited for) ..."""

    @property
    def is_runner(self) -> bool:
        """Whether it is a container or a template."""
        return "squall_runner" in self.command

    def signal(self, which: signal.Signals) -> None:
        """Nothing happens when it is gone already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, which)


def process(pid: int) -> Process | None:
    """The process of that id; None when there is none."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return Process(pid, int(parent), command, state)


def table() -> Iterator[Process]:
    """Every process of this machine."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := process(int(entry))):
            yield found


def descendants(pid: int) -> list[Process]:
    """Children, their children and so on of a process, parents first."""
    everything = list(table())
    found: list[Process] = []
    parents = {pid}
    while more := [p for p in everything if p.parent in parents and p not in found]:
        found += more
        parents = {p.pid for p in more}
    return found


def belonging_to(folder: Path) -> list[Process]:
    """Living processes that name a folder in their environment, command line or working directory; not this one."""
    wanted = os.fsencode(folder)
    return [p for p in table() if p.pid != os.getpid() and p.state != "Z" and _mentions(p.pid, wanted)]


def _mentions(pid: int, wanted: bytes) -> bool:
    for source in ("environ", "cmdline"):
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/{source}").read_bytes():
                return True
    with contextlib.suppress(OSError):
        return wanted in os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
    return False


def rss_mib(pid: int) -> float:
    """Resident memory of a process, 0 when it is gone."""
    return _memory(pid, "VmRSS")


def peak_rss_mib(pid: int) -> float:
    """The most resident memory that a process has had since `reset_peak`."""
    return _memory(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    """Begin a new measurement of `peak_rss_mib`."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory(pid: int, name: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":")), 0.0)


def _end_with_parent() -> None:
    """Runs between fork and exec: a killed test run must not leave a platform behind."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


# ---------------------------------------------------------------- the platform


@dataclass(frozen=True, slots=True)
class Part:
    """One service of the platform as it is running now."""

    name: str
    pid: int
    url: str = ""
    """Of gateways."""


@dataclass
class Platform:
    """`with Platform(processes=True, agents=2) as platform: platform.run("prog.py")`; it leaves nothing behind."""

    processes: bool = False
    """Each service is its own process; otherwise all of them are tasks of one."""
    agents: int = 1
    gateways: int = 1
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
        assert self._process is not None, "the platform is not running"
        return self._process.pid

    def parts(self) -> list[Part]:
        """What is running now; a part that was started again has a new pid."""
        try:
            body = json.loads((self.folder / "server.json").read_text())
        except FileNotFoundError:
            return []
        return [Part(p["name"], int(p["pid"]), str(p.get("url") or "")) for p in body["processes"]]

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

    def parts_named(self, prefix: str) -> list[Part]:
        """Every part whose name begins so: all agents, all gateways."""
        return [part for part in self.parts() if part.name.startswith(prefix)]

    def owned(self) -> list[Process]:
        """Every process of the platform: services, nats-server, templates, containers."""
        return belonging_to(self.folder)

    def runners(self) -> list[Process]:
        """Templates and containers."""
        return [p for p in self.owned() if p.is_runner]

    def log(self) -> str:
        """What the services have logged."""
        return "\n".join(file.read_text(errors="replace") for file in sorted(self.folder.rglob("*.log")))

    def bus_settings(self) -> BusSettings:
        """A connection of our own to its nats-server, with every right."""
        config = (self.data / "bus" / "nats.conf").read_text()
        ports = next((self.data / "bus" / "run").glob("*.ports"))
        found = re.search(r'user: (\S+), password: "([^"]+)"', config)
        assert found, config
        return BusSettings(url=json.loads(ports.read_text())["nats"][0], user=found[1], password=found[2], name="test")

    # --- life

    def start(self) -> None:
        """Start on the present data and return when the gateway answers. Raises what the platform said it died of."""
        command = [sys.executable, "-P", "-m", "squall_embedded", "--data", str(self.data)]
        command += ["--state-file", str(self.folder / "server.json"), "--port", str(self.port)]
        if self.processes:
            command += ["--processes", "--agents", str(self.agents), "--gateways", str(self.gateways)]
        with (self.folder / "platform.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.folder,
                env={**self._neutral_environment(), **self.environment},
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 — one prctl, looked up before the fork
            )
        self._announced = self._await_announcement(self._process)
        self.port = int(self.url.rpartition(":")[2])  # a restart must answer at the same address

    def _await_announcement(self, child: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert child.stdout is not None
        until, line = time.monotonic() + READY_S, b""
        while not line.endswith(b"\n"):
            if select.select([child.stdout], [], [], 0.1)[0]:
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise RuntimeError(f"the platform ended with {child.wait(STOP_S)} while starting:\n{self.log()}")
                line += chunk
            elif time.monotonic() > until:
                raise RuntimeError(f"the platform is not ready after {READY_S} s:\n{self.log()}")
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
            raise AssertionError(f"the platform did not stop within {STOP_S} s:\n{self.log()[-4000:]}") from None
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

    def remove(self) -> None:
        """End what is left and delete the folder."""
        for left in self.owned():
            left.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_S)
            self._forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- users of it

    def _neutral_environment(self) -> dict[str, str]:
        """Ours without anybody's settings, and with temporary files and home inside the folder."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("SQUALL_", "OTEL_"))}
        mine.pop("PYTHONDONTWRITEBYTECODE", None)
        return {**mine, "TMPDIR": str(self.temporary), "SQUALL_HOME": str(self.home)}

    def client_environment(self, *, gateway: Part | None = None, **more: str) -> dict[str, str]:
        """Environment of a program that uses this platform (through that gateway)."""
        address = {"SQUALL_SERVER_URL": gateway.url if gateway else self.url, "SQUALL_TOKEN": self.token}
        return {**self._neutral_environment(), **address, **more}

    def popen(self, *command: str | Path, gateway: Part | None = None, **more: str) -> subprocess.Popen[str]:
        """Start a program that uses this platform; output is captured, errors apart."""
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.client_environment(gateway=gateway, **more),
            start_new_session=True,
        )

    def run(
        self, program: str | Path, *arguments: object, gateway: Part | None = None, timeout_s: float = 60, **more: str
    ) -> str:
        """Run a Python program that uses this platform; its output. Fails when it fails."""
        return self._finish(
            self.popen(sys.executable, program, *map(str, arguments), gateway=gateway, **more), timeout_s, check=True
        ).stdout

    def squall(self, *arguments: object, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the CLI against this platform."""
        return self._finish(self.popen(SQUALL, *map(str, arguments)), timeout_s, check=check)

    def _finish(
        self, child: subprocess.Popen[str], timeout_s: float, *, check: bool
    ) -> subprocess.CompletedProcess[str]:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            raise AssertionError(f"{child.args!r} did not end within {timeout_s} s\n{out}\n{err}") from None
        if check and child.returncode:
            raise AssertionError(f"{child.args!r} ended with {child.returncode}\n{out}\n{err}")
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)
