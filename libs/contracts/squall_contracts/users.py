"""Users: the table of roles as the part of a nats-server's configuration that knows who may do what.

Imports next to nothing: the embedded platform writes its configuration before anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from squall_contracts import roles


@dataclass(frozen=True)
class User:
    """One NATS user."""

    name: str
    role: str
    node: str
    """Of an agent; empty for the other roles."""


def users(nodes: Sequence[str]) -> list[User]:
    """Everybody: one for each role, and an agent for each node."""
    single = (*roles.SERVICES, roles.TOPOLOGY, roles.ADMIN)
    return [User(roles.user_name(role), role, "") for role in single] + [
        User(roles.user_name(roles.AGENT, node), roles.AGENT, node) for node in nodes
    ]


def authorization(region: str, shards: int, nodes: Sequence[str], password: Callable[[User], str]) -> str:
    """The `authorization` block. `password` gives what stands behind `password:`, quoted or as `$VARIABLE`."""
    return "authorization {\n" + _users(region, shards, nodes, password) + "}\n"


def account(
    region: str, shards: int, nodes: Sequence[str], password: Callable[[User], str], max_file: str, max_memory: str
) -> str:
    """The same users in an account of their own, whose limits can be seen over the bus: gateways refuse calls before
    they are reached."""
    limits = f"  jetstream: {{ max_file: {max_file}, max_mem: {max_memory} }}\n"
    return "accounts {\n SQUALL: {\n" + limits + _users(region, shards, nodes, password) + " }\n}\n"


def _users(region: str, shards: int, nodes: Sequence[str], password: Callable[[User], str]) -> str:
    entries = [_entry(user, password(user), region, shards) for user in users(nodes)]
    return "  users: [\n" + ",\n".join(entries) + "\n  ]\n"


def quoted(password: str) -> str:
    """A password as the configuration's text."""
    return json.dumps(password)


def password_variable(user: User) -> str:
    """The environment variable that holds a user's password when the configuration names it instead."""
    return "SQUALL_BUS_PASSWORD_" + user.name.upper().replace("-", "_")


def _entry(user: User, password: str, region: str, shards: int) -> str:
    allowed = roles.permissions(user.role, region, shards, user.node)
    return (
        f"    {{ user: {json.dumps(user.name)}, password: {password}, permissions: {{\n"
        f"      publish: {{ allow: {_list(allowed.publish)} }},\n"
        f"      subscribe: {{ allow: {_list(allowed.subscribe)} }} }} }}"
    )


def _list(subjects: Sequence[str]) -> str:
    return "[\n" + "".join(f"        {json.dumps(subject)}\n" for subject in subjects) + "      ]"
