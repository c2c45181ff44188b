"""The network of sandboxes: one link each to the outside (links.py), and rules about what may pass. Runs `nft`.

Owns one nftables table and the host's ends of the links. A sandbox's own end is in its network namespace, where nothing
but its loopback is otherwise. What is refused is refused on the host, out of reach of what runs inside, and at once:
addresses of the host itself, of other sandboxes, of clouds' metadata, and all private networks but those that the
operator allows.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from squall_gpu_agent.backends.sandbox import links
from squall_service.telemetry import log

# Private, link-local (metadata), carrier-grade, loopback, multicast, reserved, and Azure's metadata.
NOT_PUBLIC = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "224.0.0.0/3",
)
COMMAND_S = 10.0
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_RESOLV = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
INSIDE = "eth0"
_DOCKERS = "ip filter DOCKER-USER"


class NetworkError(OSError):
    """The machine does not allow it; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRules:
    """What the operator decides."""

    pool: str = "100.72.0.0/16"
    """Addresses of sandboxes: two each, used on this machine only."""
    allowed: tuple[str, ...] = ()
    """Private networks that sandboxes may reach all the same."""
    refused: tuple[str, ...] = ()
    """Public addresses that they may not: those of the control plane, if it has any."""


@dataclass(frozen=True, slots=True)
class Link:
    """One sandbox's way out."""

    name: str
    """Of the host's end."""
    number: int
    only: tuple[str, ...] | None
    """The only networks that it may reach; None = all that the operator allows."""


def missing() -> str:
    """Why sandboxes cannot have a network here; "" if they can."""
    return "" if shutil.which("nft") else "no network in sandboxes: nft not found (install nftables)"


def name_servers() -> list[str]:
    """The host's, without those that only the host itself can ask."""
    for path in _RESOLV:
        found = []
        for line in path.read_text().splitlines() if path.exists() else ():
            words = line.split()
            if words[:1] == ["nameserver"] and _is_outside(words[1]):
                found.append(words[1])
        if found:
            return found
    return []


class Networks:
    """All links of one agent. Methods block: for threads."""

    def __init__(self, tag: str, rules: NetworkRules) -> None:
        """`tag`: six hexadecimal digits that no other agent of this machine has."""
        self._table = f"squall_{tag}"
        self._prefix = f"sq{tag}"
        self._rules = rules
        self._pool = ipaddress.IPv4Network(rules.pool)
        # Two agents of one machine, of two platforms perhaps, share the pool: each begins somewhere else.
        self._numbers = itertools.count(int(tag, 16))
        self._used: set[int] = set()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Set up the rules, before any link."""
        self.close()
        _FORWARD.write_text("1")
        _run(["nft", "-f", "-"], self._ruleset())
        if self._dockers_rules() is not None:
            # Docker drops what it does not know. This chain is the one it leaves to others; ours has judged before.
            for side in ("iifname", "oifname"):
                rule = f'insert rule {_DOCKERS} {side} "{self._prefix}*" accept comment "{self._table}"'
                _run(["nft", "-f", "-"], rule)

    def close(self) -> None:
        """Take away rules and links, those too of an agent that was killed."""
        _run(["nft", "-f", "-"], f"table inet {self._table}\ndelete table inet {self._table}\n")
        for handle in self._dockers_rules() or ():
            _run(["nft", "-f", "-"], f"delete rule {_DOCKERS} handle {handle}")
        for name in links.names(self._prefix):
            links.remove(name)

    def connect(self, pid: int, only: Sequence[str] | None) -> Link:
        """A way out for the network namespace of a process. Raises `OSError`."""
        with self._lock:
            number = next(n for n in self._numbers_round() if n not in self._used)
            self._used.add(number)
        link = Link(f"{self._prefix}{number:x}", number, None if only is None else tuple(only))
        try:
            self._connect(link, pid)
        except OSError:
            try:
                self.disconnect(link)
            except OSError as error:  # its number stays taken until the agent starts again
                log.warning("link_not_removed", link=link.name, reason=str(error))
            raise
        return link

    def _connect(self, link: Link, pid: int) -> None:
        outside, inside = (self._pool.network_address + 2 * link.number + side for side in (0, 1))
        if link.only is not None:
            _run(["nft", "-f", "-"], self._allow_list(link))
        links.connect(link.name, INSIDE, pid, (outside, inside))

    def disconnect(self, link: Link) -> None:
        """Its sandbox has ended."""
        links.remove(link.name)
        if link.only is not None:
            table, chain = f"inet {self._table}", f"only_{link.number}"
            _run(
                ["nft", "-f", "-"], f'delete element {table} lists {{ "{link.name}" }}\ndelete chain {table} {chain}\n'
            )
        # Only now: a list that could not be taken away would be that of the number's next sandbox as well.
        with self._lock:
            self._used.discard(link.number)

    def _dockers_rules(self) -> list[int] | None:
        """Handles of our rules in Docker's table; None where it has none."""
        asked = ["nft", "-j", "list", "chain", *_DOCKERS.split()]
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=COMMAND_S)
        if told.returncode != 0:
            return None
        rules = [entry["rule"] for entry in json.loads(told.stdout)["nftables"] if "rule" in entry]
        return [int(rule["handle"]) for rule in rules if rule.get("comment") == self._table]

    def _numbers_round(self) -> itertools.chain[int]:
        """Each pair of addresses again only after all others: the kernel takes its time to forget one."""
        most = self._pool.num_addresses // 2
        start = next(self._numbers) % most
        return itertools.chain(range(start, most), range(start))

    def _ruleset(self) -> str:
        ours = f'"{self._prefix}*"'
        refused = ", ".join(self._rules.refused)
        servers = ", ".join(name_servers())
        lines = [
            f"table inet {self._table} {{",
            f" set not_public {{ type ipv4_addr; flags interval; elements = {{ {', '.join(NOT_PUBLIC)} }}; }}",
            " map lists { type ifname : verdict; }",
            " chain to_host { type filter hook input priority -10; policy accept;",
            f"  iifname {ours} reject",
            " }",
            " chain through { type filter hook forward priority -10; policy accept;",
            f"  oifname {ours} ct state established,related accept",
            f"  oifname {ours} drop",
            f"  iifname {ours} goto out",
            " }",
            " chain out {",
            "  ct state established,related accept",
            "  meta nfproto ipv6 reject",
            f"  ip daddr {{ {refused} }} reject" if refused else "",
            "  iifname vmap @lists",
            f"  ip daddr {{ {servers} }} meta l4proto {{ tcp, udp }} th dport 53 accept" if servers else "",
            f"  ip daddr {{ {', '.join(self._rules.allowed)} }} accept" if self._rules.allowed else "",
            "  ip daddr @not_public reject",
            "  accept",
            " }",
            " chain leave { type nat hook postrouting priority 100; policy accept;",
            f"  ip saddr {self._pool} oifname != {ours} masquerade",
            " }",
            "}",
        ]
        return "\n".join(line for line in lines if line) + "\n"

    def _allow_list(self, link: Link) -> str:
        table, chain = f"inet {self._table}", f"only_{link.number}"
        only = [str(ipaddress.IPv4Network(network)) for network in link.only or ()]
        rule = f"add rule {table} {chain} ip daddr {{ {', '.join(only)} }} return\n" if only else ""
        return (
            f"add chain {table} {chain}\n{rule}add rule {table} {chain} reject\n"
            f'add element {table} lists {{ "{link.name}" : jump {chain} }}\n'
        )


def _is_outside(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.version == 4 and not found.is_loopback


def _run(command: Sequence[str], words: str = "") -> None:
    done = subprocess.run(command, input=words, capture_output=True, text=True, check=False, timeout=COMMAND_S)
    if done.returncode != 0:
        raise NetworkError(0, f"{command[0]}: {done.stderr.strip()[:500] or done.returncode}")
