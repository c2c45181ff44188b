"""What may be imported from where: the parts that the import contracts of pyproject.toml cannot say."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / "sdk" / "src"

NEW_MODULES = """
import sys
before = set(sys.modules)
import squall, squall_runner
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(names - set(sys.stdlib_module_names) - {"squall", "squall_runner"}))
"""

VOCABULARY = [SDK / "squall" / name for name in ("spec.py", "errors.py", "ids.py", "gpu_types.py")]
VOCABULARY += sorted((SDK / "squall" / "http_api").glob("*.py"))


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, with its line, imports inside functions included."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module


def outside(file: Path, own: set[str], lazily: set[str]) -> list[str]:
    """Lines of a file that import something that is neither in the standard library nor allowed."""
    allowed = sys.stdlib_module_names | own | lazily
    return [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for line, module in imports_of(file)
        if module.partition(".")[0] not in allowed
    ]


def test_importing_the_sdk_and_the_runner_loads_the_standard_library_only() -> None:
    # -I: the tree's own folder and the user's site do not count. Site hooks of the environment ran before.
    answer = subprocess.run(
        [sys.executable, "-I", "-c", NEW_MODULES], capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == []


@pytest.mark.parametrize("file", VOCABULARY, ids=lambda file: file.name)
def test_the_vocabulary_uses_the_standard_library_only(file: Path) -> None:
    assert outside(file, own={"squall", "squall_runner"}, lazily=set()) == []


def test_the_runner_uses_the_standard_library_and_picklers_only() -> None:
    # The two picklers lie beside the runner in the container and are imported when a payload needs them; FastAPI is the
    # image's own, for `@squall.fastapi_endpoint`.
    lines = [
        line
        for file in sorted((SDK / "squall_runner").rglob("*.py"))
        for line in outside(file, own={"squall_runner"}, lazily={"cloudpickle", "msgpack", "fastapi"})
    ]
    assert lines == []


def test_the_sdk_imports_nothing_of_the_platform() -> None:
    dependencies = {"cloudpickle", "dotenv", "msgpack", "rich", "typer", "watchfiles"}
    lines = [
        line
        for file in sorted((SDK / "squall").rglob("*.py"))
        for line in outside(file, own={"squall", "squall_runner"}, lazily=dependencies)
    ]
    assert lines == []


def test_the_agent_takes_only_the_frames_from_the_runner() -> None:
    lines = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in sorted((ROOT / "services" / "gpu-agent" / "squall_gpu_agent").rglob("*.py"))
        for line, module in imports_of(file)
        if module.startswith("squall_runner") and module != "squall_runner.frames"
    ]
    assert lines == []
