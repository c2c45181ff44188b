"""`squall-bus`: what whoever operates the bus does with it: prints its users, makes its streams and first tokens.

The embedded platform does all of it by itself. Owns no table: users come from squall_contracts.roles, streams from its
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
from contextlib import suppress
from pathlib import Path

from squall.errors import InvalidError, SquallError
from squall.ids import TOKEN
from squall_bus import KeyExists, connect
from squall_contracts import roles, topology, users
from squall_contracts.functions import TOKENS, TokenRecord, token_key
from squall_service.clock import SystemClock
from squall_service.settings import BusConnection

MEMORY_LIMIT = "256MB"
"""For the one bucket in memory, and the readers' consumers."""
SCOPES = ("workspace", "service")
MIN_TOKEN = 32
_SIZE = re.compile(r"([1-9][0-9]*)(K|M|G|T)B")
_POWERS = {"K": 10, "M": 20, "G": 30, "T": 40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    given = _parser().parse_args(arguments)
    try:
        match given.command:
            case "users":
                _users(given)
            case "token":
                asyncio.run(_make_token(given))
            case _:
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
    token = commands.add_parser("token", help="make a token known, e.g. the first one (connects as SQUALL_BUS_* say)")
    token.add_argument("--name", required=True, help="what it is for, as lists of tokens show it")
    token.add_argument("--scope", choices=SCOPES, default="workspace", help="default: %(default)s")
    token.add_argument("--workspace", default="main", help="default: %(default)s")
    token.add_argument(
        "--stdin", action="store_true", help="read it from standard input, instead of printing a new one; repeatable"
    )
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


async def _make_token(given: argparse.Namespace) -> None:
    token = _read_token() if given.stdin else "sq-" + secrets.token_urlsafe(32)
    record = TokenRecord(workspace=given.workspace, name=given.name, scope=given.scope, created_at=SystemClock().now())
    connection = BusConnection.load()
    layout = topology.build(connection.region, connection.shards, connection.replicas)
    async with connect(connection.bus_settings(roles.TOPOLOGY), layout) as bus:
        with suppress(KeyExists):
            await bus.kv(TOKENS).create(token_key(token.encode()), record.encode())
    sys.stdout.write(f"the token {given.name!r} is known\n" if given.stdin else f"{token}\n")


def _read_token() -> str:
    token = sys.stdin.read().strip()
    if len(token) < MIN_TOKEN:
        raise InvalidError(
            f"standard input holds no token of {MIN_TOKEN} characters or more", fix="deploy/setup makes some, in .env."
        )
    return token


def main_and_exit() -> None:
    """The console script."""
    raise SystemExit(main())


if __name__ == "__main__":
    main_and_exit()
