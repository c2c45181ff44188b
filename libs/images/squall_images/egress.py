"""What builds may reach: an HTTP proxy that refuses the control plane, the machine itself and private networks.

Owns the decision about an address (`refusal`, pure) and the proxy. A build's network has nothing but this proxy, so
what speaks neither HTTP nor HTTPS through one has no network at all. Names are resolved here, once, and the address
that was judged is the one that is connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

PORT = 3128
"""In the build's own network, where nothing else is."""
VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
CONNECT_TIMEOUT_S = 30.0
HEAD_TIMEOUT_S = 60.0
MAX_HEAD_BYTES = 64 * 1024
CHUNK_BYTES = 1 << 16
MAX_CONNECTIONS = 256
"""Of one build. Each takes two descriptors of the builder, which all of its builds share."""
PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
METADATA = (ipaddress.IPv4Address("168.63.129.16"),)
"""Of clouds that have it at a public address (Azure)."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRules:
    """What a builder's operator says about it."""

    allowed: tuple[Network, ...] = ()
    """Private networks that builds may reach all the same: the one with the package mirror."""
    denied: tuple[Network, ...] = ()
    """Public ones that they may not: where the control plane is."""
    own: frozenset[Address] = frozenset()
    """Addresses of this machine."""

    def refusal(self, address: Address) -> str | None:
        """Why builds cannot reach it; None if they can."""
        if isinstance(address, ipaddress.IPv6Address):
            address = _meant(address)
        if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            return "is not an address of another machine"
        if address in METADATA:
            return "is not an address of another machine, but of the cloud's own service"
        if address in self.own:
            return "is the builder's own machine"
        if any(address in network for network in self.denied):
            return "is denied to builds (SQUALL_BUILDER_DENIED)"
        if any(address in network for network in self.allowed):
            return None
        if any(address in network for network in PRIVATE):
            return "is in a private network; allow it with SQUALL_BUILDER_ALLOWED if builds need it"
        return None


def own_addresses() -> frozenset[Address]:
    """Addresses of this machine's interfaces that others can reach it by."""
    found: set[Address] = set()
    with contextlib.suppress(OSError), open("/proc/net/fib_trie") as table:
        lines = table.read().splitlines()
        for before, line in itertools.pairwise(lines):
            if "host LOCAL" in line and "|--" in before:
                found.add(ipaddress.ip_address(before.split("|--")[1].strip()))
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as table:
        found |= {ipaddress.ip_address(int(line.split()[0], 16)) for line in table if line.strip()}
    return frozenset(found)


def _meant(address: ipaddress.IPv6Address) -> Address:
    """The IPv4 address that a translator on the way would make of it, if it is one of those."""
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class Refused(Exception):
    """The proxy does not go there."""


@contextlib.asynccontextmanager
async def serving(listener: socket.socket, rules: EgressRules) -> AsyncIterator[None]:
    """Serve builds on a listening socket of their network."""
    tasks: set[asyncio.Task[None]] = set()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(tasks) >= MAX_CONNECTIONS:
            writer.close()
            return
        tasks.add(task)
        try:
            await _serve(reader, writer, rules)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # one end went away: the other sees it
        finally:
            tasks.discard(task)
            writer.close()

    listener.setblocking(False)
    server = await asyncio.start_server(on_connection, sock=listener, limit=MAX_HEAD_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def on_this_machine(rules: EgressRules) -> AsyncIterator[dict[str, str]]:
    """Variables that lead a program of this machine the way of builds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with serving(listener, rules):
            yield {**dict.fromkeys(VARIABLES, address), "NO_PROXY": "", "no_proxy": ""}


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rules: EgressRules) -> None:
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        head = await reader.readuntil(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    method, target, _ = line.decode("latin-1").split(" ", 2)
    tunnel = method == "CONNECT"
    try:
        host, port, path = _destination(target, tunnel)
        far_reader, far_writer = await _connect(host, port, rules)
    except (Refused, ValueError) as error:
        return await _answer(writer, "403 Forbidden", str(error))
    except (OSError, TimeoutError) as error:
        return await _answer(writer, "502 Bad Gateway", f"{target} cannot be reached: {error!r}")
    try:
        if tunnel:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            # One request a connection: the next could name another host.
            far_writer.write(
                f"{method} {path} HTTP/1.1\r\n".encode("latin-1") + _headers(rest) + b"Connection: close\r\n\r\n"
            )
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, far_writer))
            both.create_task(_copy(far_reader, writer))
    except* (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        far_writer.close()


def _destination(target: str, tunnel: bool) -> tuple[str, int, str]:
    if tunnel:
        host, _, port = target.rpartition(":")
        return host.strip("[]"), int(port), ""
    parts = urlsplit(target)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{target} is not an address for a proxy")
    path = parts.path or "/"
    return parts.hostname, parts.port or 80, f"{path}?{parts.query}" if parts.query else path


async def _connect(host: str, port: int, rules: EgressRules) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        reasons: list[str] = []
        for _, _, _, _, place in found:
            address = ipaddress.ip_address(str(place[0]).partition("%")[0])
            reason = rules.refusal(address)
            if reason is None:
                return await asyncio.open_connection(str(address), port)
            reasons.append(f"{address} {reason}")
    raise Refused(f"builds cannot reach {host}:{port}: {'; '.join(dict.fromkeys(reasons))}")


def _headers(rest: bytes) -> bytes:
    dropped = (b"proxy-", b"connection:", b"keep-alive:")
    lines = [line for line in rest.split(b"\r\n") if line and not line.lower().startswith(dropped)]
    return b"".join(line + b"\r\n" for line in lines)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(CHUNK_BYTES):
        target.write(chunk)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()


async def _answer(writer: asyncio.StreamWriter, status: str, text: str) -> None:
    body = f"{text}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """CIDR ranges or single addresses. Raises `ValueError` naming the bad one."""
    return tuple(ipaddress.ip_network(text.strip(), strict=False) for text in texts if text.strip())
