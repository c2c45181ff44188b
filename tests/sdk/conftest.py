"""A gateway in this process for tests of the SDK, and a home of its own for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.fake_gateway import FakeGateway, serving

from squall import session
from squall.config import ServerAddress


@pytest.fixture
def gateway() -> FakeGateway:
    """Its state; `address` is where it listens."""
    return FakeGateway()


@pytest.fixture
def address(gateway: FakeGateway) -> Iterator[ServerAddress]:
    """The gateway, listening."""
    with serving(gateway) as served:
        yield served


@pytest.fixture
def connected(address: ServerAddress) -> Iterator[session.Session]:
    """The gateway, as the server that this process talks to."""
    with session.use(address) as used:
        yield used


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder instead of the user's ~/.squall: nothing is configured."""
    monkeypatch.setenv("SQUALL_HOME", str(tmp_path))
    return tmp_path
