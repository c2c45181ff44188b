"""A platform of two agents and two gateways that chaos tests hurt; a killed part is started again by its supervisor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.chaos import invariants
from tests.chaos.armed import Scene
from tests.chaos.victims import Effects
from tests.support.failpoints import armed_platform
from tests.support.platform import Platform

PROGRAMS = Path(__file__).parent / "programs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real platforms and waits for leases to run out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


def started() -> Platform:
    """Not yet entered."""
    return Platform(processes=True, agents=2, gateways=2)


@pytest.fixture(scope="module")
def shared() -> Iterator[Platform]:
    """One for the tests of a module."""
    with started() as platform:
        platform.squall("deploy", PROGRAMS / "work.py")
        yield platform


@pytest.fixture
def platform(shared: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """The SDK of this process talks to it; after the test every accepted call has exactly one result."""
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, shared.client_environment()[name])
    yield shared
    invariants.check(shared)


@pytest.fixture
def scene(shared_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The SDK of this process talks to it."""
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, shared_scene.platform.client_environment()[name])
    return shared_scene


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A platform with fail points, for the tests of a module; in the end every accepted call has exactly one result."""
    platform, points = armed_platform(tmp_path_factory.mktemp("points"))
    with platform, ThreadPoolExecutor(4) as threads:
        platform.squall("deploy", PROGRAMS / "work.py")
        scene = Scene(platform, points, threads)
        yield scene
        invariants.check(platform)
        scene.check_all()


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    """What user functions did, and the gate that they wait for."""
    return Effects(tmp_path)
