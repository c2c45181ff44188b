"""The platform on this machine: finds the one that `squall up` keeps running, or starts a temporary one.

The only module of the SDK that knows that an embedded platform may exist. It never imports it: the platform is another
process (`python -m squall_embedded`), reached over HTTP like any server. Owns the state folder (`~/.squall/local`), the
temporary folders, and their removal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from squall import config, errors

READY_TIMEOUT_S = 100.0
"""A first start may have to compile byte-code on a slow disk; a warm one takes about a second."""
STOP_TIMEOUT_S = 15.0
"""More than the platform's own grace period, after which it kills what is left."""
DOWN_TIMEOUT_S = 75.0
"""Running inputs may finish (25 s) and @exit hooks run (30 s)."""
RESTART_PATIENCE_S = 20.0
RESTART_POLL_S = 0.1
KILL_TIMEOUT_S = 5.0
TEMPORARY_PREFIX = "squall-"
SCRATCH_PREFIX = "squall-tmp-"
OWNER_FILE = "owner.pid"
LOG = "platform.log"


class LocalServer(NamedTuple):
    """Where a platform on this machine answers, and what it consists of."""

    url: str
    token: str
    pid: int
    version: str = ""
    data: str = ""
    mode: str = "tasks"
    """"tasks" of one process, or "processes"."""
    processes: tuple[Mapping[str, Any], ...] = ()
    """name, pid and (for gateways) url of each part."""
    started_at: float = 0.0
    fields: Mapping[str, Any] = {}
    """What a newer platform says beyond that."""


def state_file() -> Path:
    """Where the lasting platform says how to reach it."""
    return config.home() / "local" / "server.json"


def recorded() -> Optional[LocalServer]:
    """What the state file says, true or not."""
    try:
        return _server(json.loads(state_file().read_text()))
    except (OSError, ValueError):
        return None


def running(patience_s: float = RESTART_PATIENCE_S) -> Optional[LocalServer]:
    """The lasting platform of `squall up` if its process lives, with the address of a gateway of it that answers.

    Raises `ConnectionError` when it lives and none answers for so long: a gateway that was killed is back in seconds.
    """
    server = recorded()
    deadline = time.monotonic() + patience_s
    while server is not None and _is_platform(server.pid):
        urls = [server.url, *(part["url"] for part in server.processes if part.get("url"))]
        for url in dict.fromkeys(urls):
            if answers(url):
                return server._replace(url=url)
        if time.monotonic() > deadline:
            raise errors.ConnectionError(
                f"squall of `squall up` (process {server.pid}) runs, but does not answer at {server.url}",
                fix="Stop it with `squall down`, start it with `squall up`; its log is in {log}.",
                log=str(Path(server.data) / LOG),
            )
        time.sleep(RESTART_POLL_S)
        server = recorded()
    return None


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a gateway at this address says that it is healthy."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ---------------------------------------------------------------- a temporary platform


class Temporary:
    """A platform that lives as long as this process wants it, in a folder of its own.

    It stops when its standard input closes, so it also ends when this process is killed, and then it removes its
    folder itself.
    """

    def __init__(self, arguments: tuple[str, ...] = ()) -> None:
        _require_platform()
        remove_abandoned()
        with _writing("the temporary folder", "Point TMPDIR to a folder that you may write to."):
            self.data = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
            (self.data / OWNER_FILE).write_text(str(os.getpid()))
        self._process = _launch(self.data, ("--ephemeral", *arguments), stdin=subprocess.PIPE)
        self._server: Optional[LocalServer] = None

    def ready(self, timeout_s: float = READY_TIMEOUT_S) -> LocalServer:
        """Waits until it answers. Raises the error with which it failed to start."""
        if self._server is None:
            self._server = _await_ready(self._process, self.data, timeout_s)
        return self._server

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def died(self) -> errors.LocalPlatformError:
        """The error for a platform that has ended by itself."""
        status = self._process.wait(STOP_TIMEOUT_S)
        return errors.LocalPlatformError(f"the platform ended (status {status}){_quoted(log_tail(self.data))}")

    def stop(self) -> None:
        """Ends it and removes its folder; kills it when it does not end by itself."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            _kill_all(self._process.pid)  # it had no chance to stop what it started
        if self._process.stdout is not None:
            self._process.stdout.close()
        _remove_folder(self.data)

    def abandon(self) -> None:
        """Kills it now, without a chance to finish anything."""
        self._process.kill()
        self.stop()


@contextlib.contextmanager
def start_ephemeral(arguments: tuple[str, ...] = ()) -> Iterator[LocalServer]:
    """A temporary platform for the length of a `with` block; nothing of it is left afterwards."""
    platform = Temporary(arguments)
    try:
        yield platform.ready()
    finally:
        platform.stop()


def remove_abandoned() -> None:
    """Removes folders of temporary platforms of which nobody is left (their processes were killed all at once)."""
    for folder in Path(tempfile.gettempdir()).glob(TEMPORARY_PREFIX + "*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            owners = [
                int(file.read_text() or 0) for file in (folder / OWNER_FILE, folder / "platform.pid") if file.exists()
            ]
        except (OSError, ValueError):
            continue
        if owners and not any(_alive(pid) for pid in owners):
            _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    """With its temporary files, which are elsewhere when its own path is long, and its bus server's, in memory."""
    for scratch in (folder / "tmp", *folder.glob("*/staging")):
        if scratch.is_symlink() and Path(os.readlink(scratch)).name.startswith(SCRATCH_PREFIX):
            shutil.rmtree(os.readlink(scratch), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- a lasting platform


def up(
    *,
    data: Optional[Path] = None,
    arguments: tuple[str, ...] = (),
    timeout_s: float = READY_TIMEOUT_S,
    on_wait: Optional[Callable[[], None]] = None,
) -> LocalServer:
    """Starts the lasting platform and waits until it answers; the running one if there is one already."""
    present = running()
    if present is not None:
        return present
    _require_platform()
    folder = Path(data or config.home() / "local").absolute()
    with _writing(str(folder), "Choose another folder with `--data`, or move all of squall's with SQUALL_HOME."):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / LOG).touch(mode=0o600)
        state_file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    process = _launch(folder, ("--state-file", str(state_file()), *arguments), stdin=subprocess.DEVNULL)
    try:
        return _await_ready(process, folder, timeout_s, on_wait)
    except BaseException:
        with contextlib.suppress(OSError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        _kill_all(process.pid)
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


def down(timeout_s: float = DOWN_TIMEOUT_S) -> Optional[LocalServer]:
    """Stops the lasting platform and waits until it is gone; None when none was running. Its data stays."""
    server = recorded()
    if server is None or not _is_platform(server.pid):
        with contextlib.suppress(OSError):
            state_file().unlink()
        return None
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while _is_platform(server.pid):
        if time.monotonic() > deadline:
            _kill_all(server.pid)
            break
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        state_file().unlink()
    return server


# ---------------------------------------------------------------- its process


def installed() -> bool:
    """Whether the platform can be started by this interpreter."""
    return importlib.util.find_spec("squall_embedded") is not None


def log_tail(data: Path, lines: int = 15) -> str:
    """The last lines of the log of the platform in a data folder."""
    try:
        return "\n".join((data / LOG).read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def _require_platform() -> None:
    if not installed():
        raise errors.LocalPlatformError(
            "no server is configured, and the platform is not installed beside this Python",
            fix="Install it with `pip install 'squall-platform[local]'`, or set SQUALL_SERVER_URL and SQUALL_TOKEN.",
        )


@contextlib.contextmanager
def _writing(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.LocalPlatformError(f"cannot write to {what}: {error.strerror or error}", fix=fix) from error


def _launch(data: Path, arguments: tuple[str, ...], stdin: int) -> subprocess.Popen[bytes]:
    # -P: a file of the user's folder named like a module of ours must not be imported by the platform.
    command: list[str] = [sys.executable, "-P", "-m", "squall_embedded", "--data", str(data), *arguments]
    with open(data / LOG, "ab") as log:
        # A session of its own: Ctrl-C at the terminal is for the CLI, which then stops things in order.
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd=str(data),
            env=_environment(),
        )


def _environment() -> dict[str, str]:
    """Ours without what addresses a server: the platform is the server."""
    mine = dict(os.environ)
    for name in (config.SERVER_URL, config.TOKEN, config.ENVIRONMENT, "PYTHONDONTWRITEBYTECODE"):
        mine.pop(name, None)
    return mine


def _await_ready(
    process: subprocess.Popen[bytes], data: Path, timeout_s: float, on_wait: Optional[Callable[[], None]] = None
) -> LocalServer:
    """The first line that the platform writes: where it answers, or the error that kept it from starting."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise errors.LocalPlatformError(
                f"the platform was not ready after {timeout_s:.0f} s{_quoted(log_tail(data))}"
            )
        if not select.select([process.stdout], [], [], min(left_s, 0.1))[0]:
            if on_wait is not None:
                on_wait()
            continue
        chunk = os.read(process.stdout.fileno(), 1 << 16)
        if not chunk:
            status = process.wait(STOP_TIMEOUT_S)
            raise errors.LocalPlatformError(
                f"the platform ended while starting (status {status}){_quoted(log_tail(data))}"
            )
        line += chunk
    answer = json.loads(line)
    if "error" in answer:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        raise errors.from_wire(answer["error"])
    return _server(answer)


def _quoted(log: str) -> str:
    return f"; the end of its log:\n{log}" if log else ""


def _server(body: dict[str, Any]) -> LocalServer:
    known = {name: body[name] for name in LocalServer._fields if name in body and name != "fields"}
    rest = {name: value for name, value in body.items() if name not in known}
    known["processes"] = tuple(known.get("processes") or ())
    return LocalServer(**known, fields=rest)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for yet does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:  # gone in between, or not Linux
        return sys.platform != "linux"


def _is_platform(pid: int) -> bool:
    """Whether that process lives and is a platform: process ids are used again after a reboot."""
    if not _alive(pid):
        return False
    try:
        return b"squall_embedded" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return sys.platform != "linux"


def _kill_all(pid: int) -> None:
    """Kills a platform and everything that it started: all of its session (it was made the leader of one)."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        left = _session_members(pid)
        for member in left:
            with contextlib.suppress(OSError):
                os.kill(member, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.01)


def _session_members(leader: int) -> list[int]:
    """Processes of a session that are not just waiting to be reaped."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in ("Z", "X"):
                members.append(int(stat.parent.name))
    if not members and sys.platform != "linux":
        with contextlib.suppress(OSError):
            os.killpg(leader, signal.SIGKILL)
    return members
