"""Which addresses webhooks may be sent to. Pure: names are resolved elsewhere, once, and what was judged is connected
to."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = (80, 443, 8080, 8443)
"""Of public addresses. Other ports are not where web servers are, but mail, databases and the like."""
NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
METADATA = (ipaddress.IPv4Address("168.63.129.16"),)
"""Of a cloud that has it at a public address (Azure)."""
ALLOW = "allow it with SQUALL_GATEWAY_WEBHOOK_ALLOWED"


@dataclass(frozen=True, slots=True)
class TargetRules:
    """What the operator says, and what is known of this machine."""

    allowed: tuple[Network, ...] = ()
    """Networks that webhooks may be sent to although they are private; there with any port."""
    own: frozenset[Address] = frozenset()
    """Addresses of this machine."""

    def refusal(self, address: Address, port: int) -> str | None:
        """Why nothing is sent to this address and port; None if it may be."""
        meant = as_reached(address)
        if any(meant in network for network in self.allowed if network.version == meant.version):
            return None
        if meant in self.own:
            return f"is an address of this machine; {ALLOW}"
        if meant in METADATA or not _is_public(meant):
            return f"is not a public address; {ALLOW}"
        if port not in PORTS:
            return f"port {port} is not one of {', '.join(map(str, PORTS))}; {ALLOW}"
        return None


def as_reached(address: Address) -> Address:
    """The IPv4 address that this one stands for, if it is one of those that do."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64[0]:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False  # is_reserved: ::a.b.c.d too, which some systems take for a.b.c.d
    return not (isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address in NAT64[1]))


def literal(url: str) -> tuple[Address, int] | None:
    """The address and port of a checked URL that names an address and not a host."""
    parts = urlsplit(url)
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return None
    return address, port_of(url)


def port_of(url: str) -> int:
    """The port of a checked URL."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def endpoint_of(url: str) -> str:
    """What has its own share of the open requests: the receiver's host and port."""
    return f"{urlsplit(url).hostname}:{port_of(url)}"


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """CIDR ranges or single addresses. Raises `ValueError` naming the bad one."""
    return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in texts if text.strip())
