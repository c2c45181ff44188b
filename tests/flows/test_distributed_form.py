"""compose.yaml's services as processes on this machine: its commands, environment and configuration files, with other
addresses. The bus has users, blobs are in a real S3 server, and the caller comes through the proxy."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.deployment import ROOT, Site, neutral
from tests.support.platform import SQUALL, eventually

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
READY_S = 60.0
DOMAIN = "squall.localhost"
"""Names that are this machine's: for them the proxy makes a CA of its own."""
PAGE = """
import squall

app = squall.App("public")


@app.function()
@squall.wsgi_app()
def page():
    def application(environ, start_response):
        start_response("200 OK", [])
        told = ("wsgi.url_scheme", "REMOTE_ADDR", "HTTP_HOST", "HTTP_X_FORWARDED_PROTO")
        return [" ".join([*(environ[name] for name in told), page.get_web_url()]).encode()]

    return application
"""
S3_PARTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer") for kind in ("", ".grpc"))
S3_PARTS += ("s3.port.grpc",)
PROGRAM = """
import squall

app = squall.App("distributed")


@app.function()
def half(data: bytes) -> bytes:
    print("halving", len(data))
    return data[: len(data) // 2]


@app.local_entrypoint()
def main() -> None:
    print([len(part) for part in half.map([bytes(10), bytes(400_000)])])
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has; held together, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Deployment:
    """Starts services of a compose configuration; ends what it started."""

    def __init__(self, site: Site) -> None:
        self.site = site
        # Sandboxes need the agent's container around them; tests/docker/test_compose.py has both.
        self.config = site.config(SQUALL_BACKEND="process", SQUALL_FORMATS="environments")["services"]
        names = (
            "nats",
            "nats-http",
            "gateway",
            "scheduler",
            "autoscaler",
            "builder",
            "agent",
            "proxy",
            "proxy-tls",
            "s3",
            *S3_PARTS,
        )
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str) -> str:
        """An address, port or folder of a container as it is on this machine."""
        for name, inside in (("nats", 4222), ("s3", 8333), ("gateway", 8700)):
            text = text.replace(f"//{name}:{inside}", f"//127.0.0.1:{self.ports[name]}")
        return text.replace("/var/lib/squall", str(self.site.folder / "node"))

    def environment(self, service: str) -> dict[str, str]:
        given: Mapping[str, str] = self.config[service].get("environment", {})
        own = {name: self.here(value) for name, value in given.items() if value}
        for name in own:
            if re.fullmatch(r"SQUALL_[A-Z_]+_PORT", name) and service in self.ports:
                own[name] = str(self.ports[service])
            elif own[name] == "0.0.0.0":
                own[name] = "127.0.0.1"
        return own

    def start(self, service: str, *command: str | Path, **more: str) -> None:
        log = (self.site.folder / f"{service}.log").open("wb")
        with log:
            self.started[service] = subprocess.Popen(
                [str(word) for word in command],
                env={**neutral(), "TMPDIR": str(self.site.folder), **self.environment(service), **more},
                cwd=self.site.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self, name: str, path: str = "/readyz") -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[name]}{path}", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def await_ready(self, service: str, name: str = "", path: str = "/readyz") -> None:
        eventually(
            lambda: self.started[service].poll() is None and self.answers(name or service, path),
            within_s=READY_S,
            what=lambda: f"{service} does not get ready: {self.log(service)}",
        )

    def log(self, service: str) -> str:
        return (self.site.folder / f"{service}.log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        for service, child in reversed(self.started.items()):
            if child.poll() is None:
                # The S3 server takes 15 s to stop, without anything to do. Nobody needs what it stored.
                child.send_signal(signal.SIGKILL if service == "s3" else signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def start_all(deployment: Deployment) -> None:
    """In the order that `depends_on` says."""
    site, ports, config = deployment.site, deployment.ports, deployment.config
    nats = site.folder / "nats"
    nats.mkdir()
    conf = site.folder / "deploy" / "nats" / "nats.conf"
    conf.write_text(conf.read_text().replace("store_dir: /data", f'store_dir: "{nats}"'))
    command = ["-c", conf, "-a", "127.0.0.1", "-p", str(ports["nats"])]
    (site.folder / "deploy" / "nats" / "site").symlink_to(site.folder / "deploy" / "site")  # mounted beside it
    monitoring = ["-m", str(ports["nats-http"])]
    deployment.start("nats", BIN / "nats-server", *command, *monitoring, **site.secrets())
    s3 = site.folder / "s3"
    s3.mkdir()
    more = [f"-{part}={ports[part]}" for part in S3_PARTS]
    more += [f"-s3.localSocket={s3 / 's3.sock'}", f"-filer.localSocket={s3 / 'filer.sock'}"]
    limits = ("-master.volumeSizeLimitMB=64", "-ip=127.0.0.1", f"-s3.port={ports['s3']}")
    weed = [word.replace("/data", str(s3)).replace("0.0.0.0", "127.0.0.1") for word in config["s3"]["command"]]
    deployment.start("s3", BIN / "weed", *weed, *more, *limits)
    deployment.await_ready("nats", "nats-http", "/healthz?js-enabled-only=true")
    # What Compose prints can be read by it again, so a dollar is two.
    script = [word.replace("$$", "$") for word in config["topology"]["command"]]
    deployment.start("topology", *script, PATH=f"{BIN}:{os.environ['PATH']}")
    assert deployment.started["topology"].wait(60) == 0, deployment.log("topology")
    deployment.await_ready("s3", path="/healthz")
    tls = f"{DOMAIN}:{ports['proxy-tls']}"
    public = {"SQUALL_GATEWAY_WEB_URL": f"https://{tls}", "SQUALL_GATEWAY_TRUSTED_PROXIES": "127.0.0.1, ::1"}
    for service in ("scheduler", "autoscaler", "builder", "gateway"):
        deployment.start(service, BIN / f"squall-{service}", **(public if service == "gateway" else {}))
    deployment.await_ready("gateway")
    deployment.start("agent", BIN / "squall-gpu-agent")
    proxy = {
        "SQUALL_ADDRESS": f"http://127.0.0.1:{ports['proxy']}, https://{tls}, https://*.{tls}",
        "SQUALL_PROXY_OPTIONS": "auto_https disable_redirects",
        "SQUALL_GATEWAY_NAME": "localhost",
        "SQUALL_GATEWAY_PORT": str(ports["gateway"]),
        "HOME": str(site.folder),
    }
    caddyfile = site.folder / "deploy" / "caddy" / "Caddyfile"
    deployment.start("proxy", BIN / "caddy", "run", "--adapter", "caddyfile", "--config", caddyfile, **proxy)
    for service in ("scheduler", "autoscaler", "builder", "agent", "proxy"):
        deployment.await_ready(service)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    site = Site(tmp_path_factory.mktemp("distributed"))
    site.setup("node-1")
    ready = Deployment(site)
    try:
        start_all(ready)
        yield ready
    finally:
        ready.stop()


def run(deployment: Deployment, *words: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in (SQUALL, *words)],
        env={
            **neutral(),
            "SQUALL_HOME": str(deployment.site.folder / "home"),
            "SQUALL_SERVER_URL": f"http://127.0.0.1:{deployment.ports['proxy']}",
            "SQUALL_TOKEN": deployment.site.secrets()["SQUALL_WORKSPACE_TOKEN"],
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_a_program_runs_through_the_proxy_with_its_large_values_in_s3(deployment: Deployment, tmp_path: Path) -> None:
    program = tmp_path / "distributed.py"
    program.write_text(PROGRAM)

    ran = run(deployment, "run", program)

    assert ran.returncode == 0, ran.stderr
    assert "[5, 200000]" in ran.stdout
    assert "halving 400000" in ran.stdout + ran.stderr
    nodes = run(deployment, "node", "list")
    assert "node-1" in nodes.stdout, nodes.stderr


def test_a_web_function_is_reached_by_tls_on_a_host_of_its_own(deployment: Deployment, tmp_path: Path) -> None:
    program = tmp_path / "public.py"
    program.write_text(PAGE)
    port = deployment.ports["proxy-tls"]
    host = f"main--public-page.{DOMAIN}"
    deployed = run(deployment, "deploy", program)
    assert deployed.returncode == 0, deployed.stderr
    roots = deployment.site.folder / ".local" / "share" / "caddy" / "pki" / "authorities" / "local" / "root.crt"

    with httpx.Client(verify=ssl.create_default_context(cafile=str(roots)), timeout=60) as client:
        headers = {"Host": f"{host}:{port}", "X-Forwarded-For": "6.6.6.6"}
        answer = client.get(f"https://127.0.0.1:{port}/", headers=headers, extensions={"sni_hostname": host})
        scheme, address, seen, proto, url = answer.text.split()

    assert (scheme, seen, proto) == ("https", f"{host}:{port}", "https")
    assert address == "127.0.0.1"  # the proxy's client, whatever that says of itself
    assert url in (f"https://{host}:{port}", f"https://{DOMAIN}:{port}/web/main--public-page")
    assert url in deployed.stdout + deployed.stderr


def test_measurements_are_not_for_the_outside(deployment: Deployment) -> None:
    assert deployment.answers("gateway", "/metrics")
    assert not deployment.answers("proxy", "/metrics")


def test_every_measurement_in_the_rules_is_served(deployment: Deployment, tmp_path: Path) -> None:
    program = tmp_path / "distributed.py"
    program.write_text(PROGRAM)
    assert run(deployment, "run", program).returncode == 0  # some are there from the first event on
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    wanted = set(re.findall(r"\bsquall_[a-z_]+", rules))
    assert wanted

    def missing() -> set[str]:
        served: set[str] = set()
        for service in ("gateway", "scheduler", "autoscaler", "builder", "agent"):
            with urllib.request.urlopen(f"http://127.0.0.1:{deployment.ports[service]}/metrics", timeout=5) as answer:
                served |= set(re.findall(r"^(squall_[a-z_]+)", answer.read().decode(), re.MULTILINE))
        return wanted - served

    eventually(lambda: not missing(), within_s=READY_S, what=missing)
