"""A whole platform whose containers are sandboxes: started, used and stopped by its command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docker.sandboxes import shared_base_root

from squall_images import bases
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder

pytestmark = [pytest.mark.slow, pytest.mark.root]

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROGRAM = """
import os
import squall

app = squall.App("boxed")


@app.function(isolation="sandbox")
def outside():
    with open("/proc/self/uid_map") as file:
        return int(file.read().split()[1])


@app.function(block_network=True)
def blocked():
    return os.listdir("/sys/class/net")


@app.local_entrypoint()
def main():
    print("host root inside:", outside.remote() == 0, "network:", blocked.remote())
    print("ran:", len(list(again.map(range(5)))))


@app.function()
def again(x):
    assert os.getpid() == 2
    return x
"""


@pytest.fixture
def squall(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command, and a platform that has a base for debian_slim."""
    folder = LayerFolder(tmp_path / "data" / "images")
    folder.open()
    bases.register(folder, f"debian_slim:{OWN}", shared_base_root(tmp_path_factory), Configuration())
    command = [str(Path(sys.executable).with_name("squall"))]
    environment = {**os.environ, "SQUALL_HOME": str(tmp_path / "home")}
    told = run([*command, "up", "--backend", "sandbox", "--data", str(tmp_path / "data")], environment)
    assert "squall runs at" in told
    os.environ["SQUALL_HOME"] = environment["SQUALL_HOME"]
    try:
        yield command
    finally:
        run([*command, "down"], environment)
        del os.environ["SQUALL_HOME"]


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_functions_run_in_sandboxes(squall: list[str], tmp_path: Path) -> None:
    program = tmp_path / "boxed.py"
    program.write_text(PROGRAM)
    told = run([*squall, "run", str(program)])
    assert "host root inside: False network: ['lo']\nran: 5\n" in told
    assert "sandbox" in run([*squall, "node", "list"])
