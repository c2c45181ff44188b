"""One clean copy of the tree for all acceptance tests, one user for each."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.stranger import Stranger, copy_tree, set_up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real platforms."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def clean_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a stranger has it after the first command."""
    copy = tmp_path_factory.mktemp("clone") / "squall"
    copy_tree(copy)
    set_up(copy)
    return copy


@pytest.fixture
def stranger(clean_copy: Path) -> Iterator[Stranger]:
    """Whatever a test does, its processes end and its folder goes."""
    folder = Path(tempfile.mkdtemp(prefix="sq-"))  # short: unix sockets in it may have 107 characters
    user = Stranger(clean_copy, folder)
    try:
        yield user
    finally:
        user.end()
        shutil.rmtree(folder, ignore_errors=True)
