"""What `run` and `deploy` are pointed at: the right spellings, and the wrong ones with the right one beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from squall.cli.reference import parse
from squall.errors import UsageError


@pytest.mark.parametrize(
    ("text", "as_module", "module", "path", "target"),
    [
        ("app.py", False, "app", "app.py", ""),
        ("dir/app.py::main", False, "app", "dir/app.py", "main"),
        ("app.py::app.main", False, "app", "app.py", "app.main"),
        ("app.py::Model.answer", False, "app", "app.py", "Model.answer"),
        ("-", False, "stdin", "-", ""),
        ("-::main", False, "stdin", "-", "main"),
        ("pkg.mod", True, "pkg.mod", "", ""),
        ("pkg.mod::main", True, "pkg.mod", "", "main"),
        ("07_web.check-boxes.app", True, "07_web.check-boxes.app", "", ""),
    ],
)
def test_the_forms_of_a_reference(text: str, as_module: bool, module: str, path: str, target: str) -> None:
    found = parse(text, as_module)

    assert (found.module, found.path, found.target) == (module, path, target)


@pytest.mark.parametrize(
    ("text", "as_module", "fix"),
    [
        ("app.py:main", False, "app.py::main"),
        ("my.app.py", False, "my_app.py"),
        ("pkg.mod", False, "-m pkg.mod"),
        ("app", False, "app.py"),
        ("app.py::", False, "app.py"),
        ("app.py::a-b", False, "file.py::name"),
        ("app.txt", False, ".py"),
        ("dir/app.py", True, "Leave out"),
        ("a b", True, "-m package.module"),
    ],
)
def test_a_wrong_reference_is_told_with_the_right_one(text: str, as_module: bool, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, as_module)

    assert fix in caught.value.hint


def test_a_file_whose_path_has_a_colon_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a:b" / "app.py"
    file.parent.mkdir()
    file.touch()

    assert parse(f"{file}::main").path == str(file)
