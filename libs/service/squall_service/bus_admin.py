"""`squall-bus`: what whoever operates the bus does with it: prints its users, makes its streams.

The embedded platform does both by itself. Owns no table: users come from squall_contracts.roles, streams from its
topology.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from squall.errors import InvalidError, SquallError
from squall.ids import TOKEN
from squall_bus import connect
from squall_contracts import roles, topology, users
from squall_service.settings import BusConnection

MEMORY_LIMIT = "256MB"
"""For the one bucket in memory, and the readers' consumers."""
_SIZE = re.compile(r"([1-9][0-9]*)(K|M|G|T)B")
_POWERS = {"K": 10, "M": 20, "G": 30, "T": 40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "users":
            _users(given)
        else:
            asyncio.run(_make_topology())
    except SquallError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n  Fix: {error.hint}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="squall-bus", description="Operates the bus of a region.")
    commands = parser.add_subparsers(dest="command", required=True)
    wanted = commands.add_parser(
        "users", help="print the `authorization` block of nats-server: one user for each role, with the least rights"
    )
    wanted.add_argument("--region", default="local", help="default: %(default)s")
    wanted.add_argument("--shards", type=int, default=4, help="as SQUALL_BUS_SHARDS; default: %(default)s")
    wanted.add_argument("--node", action="append", default=[], metavar="NAME", help="node with an agent; repeatable")
    wanted.add_argument(
        "--max-file",
        metavar="SIZE",
        help="put them into an account that may store so much (200GB): gateways refuse new calls at 80 %% of it",
    )
    wanted.add_argument(
        "--secrets",
        type=Path,
        metavar="FILE",
        help="also write the passwords, as variables for the server's environment; those in the file are kept",
    )
    commands.add_parser("topology", help="make or update streams and buckets (connects as SQUALL_BUS_* say)")
    return parser


def _users(given: argparse.Namespace) -> None:
    for name in (given.region, *given.node):
        if not TOKEN.fullmatch(name):
            raise InvalidError(f"{name!r} is not a name", fix="Use lower-case letters, digits and hyphens.")
    if given.max_file is not None:
        _check_size(given.max_file, topology.build(given.region, given.shards))
    if given.secrets is not None:
        _write_secrets(given.secrets, users.users(given.node))

    def password(user: users.User) -> str:
        return "$" + users.password_variable(user)

    sys.stdout.write("# Written by `squall-bus users`; include it in nats-server's configuration.\n")
    if given.max_file is None:
        sys.stdout.write(users.authorization(given.region, given.shards, given.node, password))
    else:
        sys.stdout.write(users.account(given.region, given.shards, given.node, password, given.max_file, MEMORY_LIMIT))


def _check_size(text: str, layout: topology.Topology) -> None:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidError(f"{text!r} is not a size", fix="Write it as in 200GB or 512MB.")
    size = int(found[1]) << _POWERS[found[2]]
    reserved = sum(max(0, spec.max_bytes) for spec in layout.streams)
    if size < 2 * reserved:
        raise InvalidError(
            f"{text} is too little: logs, events and spans of {layout.shards} shards reserve {reserved >> 30} GB of it",
            fix=f"Give it {2 * reserved >> 30}GB or more, or leave --max-file out.",
        )


def _write_secrets(file: Path, wanted: list[users.User]) -> None:
    present = file.read_text().splitlines() if file.exists() else []
    known = {line.partition("=")[0] for line in present}
    # A letter first: nats-server reads a variable's value as configuration, where digits would be a number.
    fresh = [
        f"{name}=p{secrets.token_hex(24)}" for user in wanted if (name := users.password_variable(user)) not in known
    ]
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write("".join(f"{line}\n" for line in [*present, *fresh]))


async def _make_topology() -> None:
    connection = BusConnection.load()
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    async with connect(connection.bus_settings(roles.TOPOLOGY), layout) as bus:
        await bus.ensure_topology()
    sys.stdout.write(f"region {layout.region}: {len(layout.streams)} streams, {len(layout.buckets)} buckets\n")


def main_and_exit() -> None:
    """The console script."""
    raise SystemExit(main())


if __name__ == "__main__":
    main_and_exit()
