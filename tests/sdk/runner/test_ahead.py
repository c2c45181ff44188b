"""What a bare interpreter has imported before it is forked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import squall

BEGIN = """
import json, os, sys
sys.path.append(sys.argv[1])
import squall_runner.__main__
from squall_runner import ahead

read, of = [], type(os.environ)
plain = of.__getitem__
of.__getitem__ = lambda self, name: (read.append(name), plain(self, name))[1]
ahead.load()
of.__getitem__ = plain
loaded = set(sys.modules)
"""
USERS = """
os.environ.update({"SQUALL_CONTAINER": "1", "MODAL_IS_REMOTE": "1", "SQUALL_IMAGE_ID": "im-other"})
import squall
app = squall.App("users")
image = squall.Image.debian_slim().pip_install("of-another-image")
with image.imports():
    import of_another_image

@app.function(image=image, retries=squall.Retries(max_retries=2), schedule=squall.Cron("0 6 * * *"))
def f(x): return x

@app.cls(image=image)
class C:
    size: int = squall.parameter(default=1)
    @squall.enter()
    def prepare(self): pass
    @squall.method()
    def m(self): pass
"""


def told(program: str, answer: str) -> Any:
    """What an interpreter says that is started as those of containers are."""
    sdk = str(Path(squall.__file__).parents[1])
    command = [sys.executable, "-I", "-S", "-c", f"{BEGIN}{program}\nprint(json.dumps({answer}))", sdk]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_it_reads_nothing_that_its_forks_learn_later_and_has_one_thread() -> None:
    modules, read, threads = told("", "[sorted(loaded), read, len(os.listdir('/proc/self/task'))]")
    assert {"squall.app", "squall.spec", "inspect"} <= set(modules)
    assert {"_hashlib", "_ssl", "ssl", "random", "logging"} & set(modules) == set()
    assert (read, threads) == ([], 1)


def test_a_users_file_finds_there_what_it_asks_for() -> None:
    more = told(USERS, "sorted(name for name in set(sys.modules) - loaded if name.startswith('squall'))")
    assert more == []


def test_what_comes_with_the_code_is_imported_instead(tmp_path: Path) -> None:
    (tmp_path / "numbers.py").write_text("mine = True")
    program = f"""
ahead.settle(type("Of", (), {{"code_root": {str(tmp_path)!r}}}))
sys.path.insert(0, {str(tmp_path)!r})
import numbers, squall.spec
"""
    assert told(program, "[numbers.mine, squall.spec.__name__]") == [True, "squall.spec"]
