"""compose.yaml for real: its images are built, it comes up, serves calls through its proxy while services are scaled
and restarted, and goes down without leaving anything."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import engine
from tests.support.deployment import COMPOSE, ROOT, Site, neutral
from tests.support.platform import SQUALL

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]
PROJECT = f"squall-test-{os.getpid()}"
SOURCES = ("libs", "sdk", "services", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", ".dockerignore")
PROGRAM = """
import squall

app = squall.App("composed")
image = squall.Image.debian_slim().uv_pip_install("humanize")


@app.function(image=image, isolation="sandbox")
def half(data: bytes) -> bytes:
    import os

    import humanize

    with open("/proc/self/uid_map") as file:
        assert int(file.read().split()[1]) > 0x70000000, "nobody's ids on the machine"
    assert os.listdir("/sys/class/net") != ["lo"], "it reaches the outside"
    print("halving", humanize.intcomma(len(data)))
    return data[: len(data) // 2]


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.local_entrypoint()
def main() -> None:
    print([len(part) for part in half.map([bytes(10), bytes(400_000)])])
"""


class Composed:
    """One project of Docker Compose in a copy of the sources."""

    def __init__(self, folder: Path) -> None:
        for name in SOURCES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        self.site = Site(folder)
        self.site.setup("node-1")

    def compose(self, *words: str, timeout_s: float = 300) -> str:
        child = subprocess.run(
            [COMPOSE, *words],
            cwd=self.site.folder,
            env={
                **neutral(),
                "COMPOSE_PROJECT_NAME": PROJECT,
                "DOCKER_BUILDKIT": "1",
                "BASE_IMAGE": engine.BASE,
                "NATS_IMAGE": NATS,
                "S3_IMAGE": S3,
                "CADDY_IMAGE": CADDY,
                "SQUALL_PUBLISH": "127.0.0.1:0:80",
            },
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert child.returncode == 0, f"{words}: {child.stdout[-2000:]}\n{child.stderr[-4000:]}"
        return child.stdout

    def client(self) -> dict[str, str]:
        """Environment of a caller, who knows the proxy's port and a token."""
        return {
            **neutral(),
            "SQUALL_HOME": str(self.site.folder / "home"),
            "SQUALL_SERVER_URL": f"http://{self.compose('port', 'proxy', '80').strip()}",
            "SQUALL_TOKEN": self.site.secrets()["SQUALL_WORKSPACE_TOKEN"],
        }

    def squall(self, *words: str | Path) -> str:
        child = subprocess.run(
            [str(word) for word in (SQUALL, *words)],
            env=self.client(),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert child.returncode == 0, child.stderr
        return child.stdout + child.stderr

    @contextlib.contextmanager
    def program(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A Python program that uses it, and is gone when the block is left."""
        command = [sys.executable, *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=self.client(), stdout=pipe, stderr=pipe, text=True) as child:
            try:
                yield child
            finally:
                child.kill()

    def told(self) -> str:
        """What the services have logged last, and what is known of the calls."""
        calls = subprocess.run(
            [SQUALL, "call", "list"], env=self.client(), capture_output=True, text=True, timeout=60, check=False
        )
        return f"{calls.stdout[:2000]}{calls.stderr}\n{self.compose('logs', '--tail', '60', '--timestamps')}"


NATS, S3, CADDY = (f"squall-test/{name}:local" for name in ("nats", "s3", "caddy"))


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    engine.base_image()
    engine.server_image(NATS, "nats-server", ["nats-server"], entrypoint=True)
    engine.server_image(S3, "weed", ["weed"], entrypoint=True)
    caddy = ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
    engine.server_image(CADDY, "caddy", caddy)
    project = Composed(tmp_path_factory.mktemp("composed"))
    try:
        project.compose("build")
        project.compose("up", "-d", "--wait", "--wait-timeout", "180")
        yield project
    finally:
        project.compose("down", "-v", "--timeout", "10")


def leftovers() -> list[str]:
    """Containers, volumes and networks of the project."""
    mine = ("--filter", f"label=com.docker.compose.project={PROJECT}", "-q")
    return [
        line
        for kind in (("ps", "-a"), ("volume", "ls"), ("network", "ls"))
        for line in engine.docker(*kind, *mine).splitlines()
    ]


def test_a_program_runs_through_the_proxy(composed: Composed, tmp_path: Path) -> None:
    program = tmp_path / "composed.py"
    program.write_text(PROGRAM)

    told = composed.squall("run", program)

    assert "[5, 200000]" in told
    assert "halving 400,000" in told
    assert "sandbox" in composed.squall("node", "list")


def test_only_the_proxy_publishes_a_port(composed: Composed) -> None:
    published = engine.docker(
        "ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Names}} {{.Ports}}"
    )
    with_ports = [line.split()[0] for line in published.splitlines() if "->" in line]
    assert with_ports == [f"{PROJECT}-proxy-1"]


CALLER = """
import faulthandler
import pathlib
import sys
import time

import squall

faulthandler.enable()  # for `ended`
double = squall.Function.from_name("composed", "double")
enough, done = pathlib.Path(sys.argv[1]), 0
while not enough.exists():
    began = time.monotonic()
    assert double.remote(done) == 2 * done
    if time.monotonic() - began > 5:
        print(f"call {done} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    done += 1
print(done)
"""


def test_services_are_scaled_and_restarted_while_calls_go_on(composed: Composed, tmp_path: Path) -> None:
    (tmp_path / "composed.py").write_text(PROGRAM)
    composed.squall("deploy", tmp_path / "composed.py")
    (tmp_path / "caller.py").write_text(CALLER)
    enough = tmp_path / "enough"
    with composed.program(tmp_path / "caller.py", enough) as caller:
        composed.compose("up", "-d", "--wait", "--no-recreate", "--scale", "gateway=3", "gateway")
        for number in (1, 2, 3):
            engine.docker("restart", "--time", "10", f"{PROJECT}-gateway-{number}")
            composed.compose("up", "-d", "--wait", "--no-recreate", "--scale", "gateway=3", "gateway")
        for service in ("scheduler", "autoscaler", "builder", "agent", "nats"):
            composed.compose("restart", "--timeout", "10", service)
        enough.touch()
        out, told = ended(caller, 240)

    assert caller.returncode == 0, told + composed.told()
    assert int(out) > 0


def ended(caller: subprocess.Popen[str], within_s: float) -> tuple[str, str]:
    """What it printed. One that does not end is made to tell where it is."""
    try:
        return caller.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        caller.send_signal(signal.SIGABRT)
        return caller.communicate(timeout=30)


def test_it_goes_down_clean(composed: Composed) -> None:
    composed.compose("down", "-v", "--timeout", "10")

    assert leftovers() == []
