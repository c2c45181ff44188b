"""The SDK in every Python that this machine has: user programs and containers are not all of one version."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.sdk.fake_gateway import FakeGateway

from squall.config import ServerAddress

SRC = Path(__file__).resolve().parents[2] / "sdk" / "src"
MINORS = range(9, 16)


@cache
def interpreter(minor: int) -> str | None:
    """The real executable of Python 3.<minor>, or None. Shims of version managers run nothing by themselves."""
    candidates = [
        shutil.which(f"python3.{minor}"),
        *glob.glob(os.path.expanduser(f"~/.pyenv/versions/3.{minor}.*/bin/python")),
    ]
    for candidate in filter(None, candidates):
        show = [candidate, "-I", "-c", "import sys; print(sys.version_info[1], sys.executable)"]
        answer = subprocess.run(show, capture_output=True, text=True, check=False, timeout=30)
        found = answer.stdout.split()
        if answer.returncode == 0 and found[:1] == [str(minor)]:
            return found[1]
    return None


PROGRAM = """
import asyncio, pickle, sys
import squall

app = squall.App("other", image=squall.Image.debian_slim("3.11").pip_install("attrs"))

@app.function(retries=2, timeout=10, cpu=(1, 2))
def double(x): return 2 * x

@app.function()
def count(n):
    yield from range(n)

@app.cls()
class Model:
    factor: int = squall.parameter(default=3)

    @squall.enter()
    def prepare(self): self.ready = True

    @squall.method()
    def scale(self, x): return self.ready and self.factor * x

async def later():
    items = [x async for x in count.remote_gen.aio(2)]
    return [await double.remote.aio(2), [x async for x in double.map.aio(range(3))], items]

if __name__ == "__main__":
    with app.run():
        assert double.remote(21) == 42
        assert list(double.map(range(100))) == [2 * x for x in range(100)]
        assert list(count.remote_gen(3)) == [0, 1, 2]
        assert double.spawn(4).get() == 8
        assert Model(factor=5).scale.remote(2) == 10 and Model().scale.local(2) == 6
        assert len(double.remote(bytes(200000))) == 400000
        assert pickle.loads(pickle.dumps(double)).remote(1) == 2
        assert asyncio.run(later()) == [4, [0, 2, 4], [0, 1]]
        try:
            double.remote(None)
        except TypeError as error:
            assert "in <lambda>" in str(error.__cause__)
    print("fine", sys.version_info[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("minor", MINORS)
def test_a_program_runs_in_python(
    minor: int, gateway: FakeGateway, address: ServerAddress, home: Path, tmp_path: Path
) -> None:
    python = sys.executable if minor == sys.version_info[1] else interpreter(minor)
    if python is None:
        pytest.skip(f"no Python 3.{minor} here")
    gateway.functions = {
        "double": lambda x: 2 * x,
        "count": range,
        "Model.scale": lambda parameters: lambda x: parameters["factor"] * x,
    }
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    answer = subprocess.run(
        [python, "-W", "error", str(program)],
        env={
            "PYTHONPATH": str(SRC),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SQUALL_SERVER_URL": address.url,
            "SQUALL_TOKEN": address.token,
            "SQUALL_HOME": str(home),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.stdout.split() == ["fine", str(minor)], answer.stderr
