"""Large values: a call with 1 MiB of argument and result beside a plain HTTP echo of the same bytes, in turns.

    scripts/bench large                services as processes
    scripts/bench large --mib 16
The echo is uvicorn with a handler that sends back what it got, asked by http.client on a connection that stays open.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import squall

if squall.is_local():  # a container has this file alone
    from calls import commit, durability, machine, percentile, timed
    from hops import CpuTable, Processes, platform

app = squall.App("bench-large")

WARM_UP = 20
ROUNDS = 150


@app.function(min_containers=1)
def echo(value: bytes) -> bytes:
    return value


async def echo_app(scope: Any, receive: Any, send: Any) -> None:
    """The plain echo, as an ASGI application."""
    parts, more = [], scope["type"] == "http"
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    head = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
    await send(head)
    await send({"type": "http.response.body", "body": body})


def serve_echo() -> None:
    """Print the port, then echo until killed."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(echo_app, lifespan="off", log_level="critical", access_log=False)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


@contextmanager
def plain_echo() -> Iterator[http.client.HTTPConnection]:
    """A connection to an echo server of its own process."""
    server = subprocess.Popen([sys.executable, __file__, "--serve-echo"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(server.stdout.readline()))
        yield connection
        connection.close()
    finally:
        server.kill()
        server.communicate()


def measure(size: int, rounds: int) -> None:
    data = os.urandom(size)

    def plain() -> None:
        connection.request("POST", "/", body=data)
        check(connection.getresponse().read())

    def call() -> None:
        check(echo.remote(data))

    def check(answer: bytes) -> None:
        if answer != data:
            raise SystemExit("the answer is not what was sent")

    took: dict[str, list[float]] = {"plain HTTP echo": [], "`remote()`": []}
    with plain_echo() as connection:
        for number in range(WARM_UP + rounds):
            for name, work in (("plain HTTP echo", plain), ("`remote()`", call)):
                milliseconds = timed(work) * 1000
                if number >= WARM_UP:
                    took[name].append(milliseconds)
    print(f"| {size / 2**20:.2g} MiB there and back | p50 ms | p90 ms | p99 ms |\n|---|---|---|---|")
    for name, values in took.items():
        print(f"| {name} | {' | '.join(f'{percentile(values, part):.2f}' for part in (0.5, 0.9, 0.99))} |")
    echoed, called = took.values()
    ratios = [percentile(called, part) / percentile(echoed, part) for part in (0.5, 0.9, 0.99)]
    print(f"| ratio | {' | '.join(f'{ratio:.1f}' for ratio in ratios)} |")


def measure_cpu(table: CpuTable, size: int, rounds: int) -> None:
    """What a call costs in each process: on a busy machine the better measure."""
    data = os.urandom(size)

    def work() -> None:
        for _ in range(rounds):
            echo.remote(data)

    table.measure_idle()
    table.measure(f"{size / 2**20:.2g} MiB there and back", rounds, work)
    table.print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", action="store_true", help="all services in one process")
    parser.add_argument("--mib", type=float, default=1.0, help="size of the value")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--serve-echo", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_echo:
        serve_echo()
        return 0
    with platform(() if given.tasks else ("--processes",)) as server:
        form = "one process and nats-server" if given.tasks else "services as processes"
        print(f"{commit()}, {machine()}; {form}; durability: {durability()}\n")
        with app.run():
            measure(int(given.mib * 2**20), given.rounds)
            measure_cpu(CpuTable(Processes(server)), int(given.mib * 2**20), given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
