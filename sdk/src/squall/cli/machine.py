"""`squall up`, `down` and `status`: the platform that stays on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from squall import config, gpu_types, local
from squall.errors import ConflictError, ConnectionError, SquallError, UsageError
from squall.http_api.fleet import NodeInfo
from squall.http_api.routes import Route
from squall.spec import from_wire

STATUS_PATIENCE_S = 1.0
BACKENDS = ("process", "sandbox", "gvisor", "docker", "auto", "both")
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def platform_arguments(
    *, processes: bool, agents: int, gateways: int, host: str, port: int, simulate_gpus: str, backend: str
) -> tuple[str, ...]:
    """The platform's own command line. Raises what is wrong with it."""
    if not processes and (agents > 1 or gateways > 1):
        raise UsageError("--agents and --gateways above 1 need --processes", fix="Add --processes.")
    arguments = ["--host", host, "--port", str(port)]
    if processes:
        arguments += ["--processes", "--agents", str(agents), "--gateways", str(gateways)]
    if simulate_gpus:
        gpu_types.simulated(simulate_gpus)
        arguments += ["--simulate-gpus", simulate_gpus]
    if backend:
        if backend not in BACKENDS:
            raise UsageError(f"--backend is one of {', '.join(BACKENDS)}, got {backend!r}")
        arguments += ["--backend", backend]
    return tuple(arguments)


def up(*, arguments: tuple[str, ...], port: int, data: Optional[Path]) -> int:
    """Starts it and says how to reach it."""
    present = local.running()
    if present is not None:
        if port and not present.url.endswith(f":{port}"):
            raise ConflictError(
                f"squall already runs on this machine, at {present.url}", fix="Stop it with `squall down` first."
            )
        sys.stdout.write(f"squall already runs at {present.url} (process {present.pid}).\n")
        return 0
    began = time.monotonic()
    server = local.up(data=data, arguments=arguments, on_wait=_spin if sys.stderr.isatty() else None)
    _clear()
    sys.stdout.write(f"✓ squall runs at {server.url} (ready after {time.monotonic() - began:.1f} s).\n")
    sys.stdout.write(f"  Data and logs: {server.data}\n")
    sys.stdout.write(f"  Token for other machines and users: {Path(server.data) / 'token'}\n")
    if "--simulate-gpus" in arguments:
        sys.stdout.write("  Its GPUs are simulated: they exist in name only.\n")
    sys.stdout.write(f"  {_containers(server)}\n")
    sys.stdout.write("  Commands of this user find it by themselves. Stop it with `squall down`.\n")
    if config.load().address is not None:
        sys.stdout.write(f"  But {config.SERVER_URL} is set: commands use {config.load().server_url}.\n")
    return 0


def _containers(server: local.LocalServer) -> str:
    """How it makes containers, in one line."""
    nodes = _ask(config.ServerAddress(server.url, server.token)).get("nodes") or [{"backends": ()}]
    offered = nodes[0]["backends"]
    if "process" not in offered:
        return f"Containers are isolated: {', '.join(offered) or 'see `squall node list`'}."
    if len(offered) > 1:
        return "Containers are plain processes; functions and images that need more get sandboxes."
    return "Containers are plain processes; `squall doctor` says what sandboxes need."


def down() -> int:
    """Stops it."""
    began = time.monotonic()
    server = local.down()
    if server is None:
        sys.stdout.write("No squall of `squall up` is running.\n")
        return 0
    sys.stdout.write(
        f"✓ Stopped squall at {server.url} after {time.monotonic() - began:.1f} s; its data stays in {server.data}.\n"
    )
    return 0


def status(*, as_json: bool) -> int:
    """Says which server commands use, and how it is; status 1 when there is none that answers."""
    found = _look()
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
    else:
        sys.stdout.write("\n".join(_describe(found)) + "\n")
    return 0 if found["reachable"] else 1


def _look() -> dict[str, Any]:
    address = config.load().address
    recorded = local.recorded()
    found: dict[str, Any] = {"source": "configured" if address else "squall up", "reachable": False, "url": None}
    if address is None and recorded is not None:
        server = _running()
        found.update(url=recorded.url, pid=recorded.pid, data=recorded.data, mode=recorded.mode)
        found.update(
            processes=[{**part, "alive": _alive(part)} for part in recorded.processes], started_at=recorded.started_at
        )
        address = config.ServerAddress(server.url, server.token) if server else None
    if address is not None:
        found["url"] = address.url
        found.update(_ask(address))
    return found


def _running() -> Optional[local.LocalServer]:
    try:
        return local.running(STATUS_PATIENCE_S)
    except ConnectionError:
        return None  # what `status` is there to tell


def _ask(address: config.ServerAddress) -> dict[str, Any]:
    from squall.client import Client

    client = Client(address)
    try:
        info = client.info()
        nodes = [from_wire(NodeInfo, row) for row in client.json("GET", Route.NODES)["nodes"]]
    except SquallError as error:
        return {"error": {"code": error.code, "message": error.message, "fix": error.hint}}
    finally:
        client.close()
    return {"reachable": True, "info": dataclasses.asdict(info), "nodes": [dataclasses.asdict(node) for node in nodes]}


def _describe(found: dict[str, Any]) -> list[str]:
    if found["url"] is None:
        return [
            "No server is configured and no squall runs on this machine.",
            "`squall run` starts one for the run; `squall up` starts one that stays.",
        ]
    lines = [f"server       {found['url']} ({found['source']})"]
    if "pid" in found:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["started_at"]))
        lines.append(f"process      {found['pid']}, {found['mode']}, up since {since}")
        lines.append(f"data         {found['data']}")
        for part in found["processes"]:
            state = "" if part["alive"] else "  NOT RUNNING"
            lines.append(f"  {part['name']:<12} {part['pid']} {part.get('url', '')}{state}".rstrip())
    if "error" in found:
        lines.append(f"state        not usable: {found['error']['message']}")
        lines.append(f"fix          {found['error']['fix']}")
    elif not found["reachable"]:
        lines.append("state        does not answer; `squall down` and `squall up` start it anew")
    else:
        info = found["info"]
        lines.append(f"state        answers: squall {info['version']}, {info['durability']}")
        lines += [f"  node       {_node(node)}" for node in found["nodes"]]
    return lines


def _node(node: Mapping[str, Any]) -> str:
    return f"{node['node']}: {node['containers']} containers, {node['cpu_used']:g} of {node['cpu']:g} cores requested"


def _alive(part: Any) -> bool:
    try:
        os.kill(int(part["pid"]), 0)
    except (OSError, KeyError, ValueError):
        return False
    return True


def _spin() -> None:
    frame = _FRAMES[int(time.monotonic() * 10) % len(_FRAMES)]
    sys.stderr.write(f"\r{frame} Starting squall")
    sys.stderr.flush()


def _clear() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()
