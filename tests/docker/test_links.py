"""Links between the host and a network namespace, asked of the kernel by other programs than ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from squall_gpu_agent.backends.sandbox import links

pytestmark = [pytest.mark.slow, pytest.mark.root]

ADDRESSES = (IPv4Address("100.127.254.252"), IPv4Address("100.127.254.253"))
NAME = f"sqt{os.getpid():x}"


@pytest.fixture
def pid() -> Iterator[int]:
    """Of a process in a network namespace of its own."""
    child = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield child.pid
    child.kill()
    child.wait()
    child.stdout.close()
    links.remove(NAME)


def told(*words: str, within: int = 0) -> Any:
    """What `ip` says, here or in the namespace of a process."""
    command = ["nsenter", f"--net=/proc/{within}/ns/net"] if within else []
    return json.loads(subprocess.run([*command, "ip", "-j", *words], check=True, capture_output=True).stdout)


def address_of(link: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [(a["local"], a["prefixlen"], a["scope"]) for a in link["addr_info"] if a["family"] == "inet"]


def test_both_ends_are_up_with_an_address_and_a_way_out(pid: int) -> None:
    links.connect(NAME, "eth0", pid, ADDRESSES)
    assert links.names(NAME) == [NAME]
    (outer,), (inner,) = told("address", "show", NAME), told("address", "show", "eth0", within=pid)
    assert "UP" in outer["flags"]
    assert "UP" in inner["flags"]
    assert address_of(outer) == [("100.127.254.252", 31, "global")]
    assert address_of(inner) == [("100.127.254.253", 31, "global")]
    (route,) = told("route", "show", "default", within=pid)
    assert (route["gateway"], route["dev"]) == ("100.127.254.252", "eth0")
    subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "route", "get", "192.0.2.1"], check=True, capture_output=True
    )


def test_it_leaves_the_calling_process_where_it_is(pid: int) -> None:
    namespaces = {os.readlink(f"/proc/self/task/{task}/ns/net") for task in os.listdir("/proc/self/task")}
    opened = len(os.listdir("/proc/self/fd"))
    links.connect(NAME, "eth0", pid, ADDRESSES)
    links.remove(NAME)
    assert {os.readlink(f"/proc/self/task/{task}/ns/net") for task in os.listdir("/proc/self/task")} == namespaces
    assert len(os.listdir("/proc/self/fd")) == opened


def test_what_was_refused_is_named(pid: int) -> None:
    links.connect(NAME, "eth0", pid, ADDRESSES)
    with pytest.raises(OSError, match=f"link {NAME}: File exists"):
        links.connect(NAME, "eth1", pid, ADDRESSES)
    links.remove(NAME)
    links.remove(NAME)  # nothing to do is no error
    assert links.names(NAME) == []
    with pytest.raises(ProcessLookupError, match="the network of the host"):
        links.connect(NAME, "eth9", os.getpid(), ADDRESSES)
    with pytest.raises(FileNotFoundError):
        links.connect(NAME, "eth0", 1 << 30, ADDRESSES)
    assert links.names(NAME) == []
