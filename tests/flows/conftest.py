"""Platforms for flow tests: both forms, started once for a module, with the program `surface` deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.support.platform import Platform

from squall_bus import BusForbidden

PROGRAMS = Path(__file__).parent / "programs"
FORMS: dict[str, Callable[[], Platform]] = {
    "one-process": Platform,
    "processes": partial(Platform, processes=True, agents=2, gateways=2),
}


@pytest.fixture(scope="module", params=FORMS)
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """The platform in one form after the other, with `surface` deployed."""
    with FORMS[request.param]() as started:
        started.squall("deploy", PROGRAMS / "surface.py")
        yield started
        nothing_was_forbidden(started)


@pytest.fixture(scope="module")
def several() -> Iterator[Platform]:
    """Two gateways and two agents as processes, with `surface` deployed."""
    with FORMS["processes"]() as started:
        started.squall("deploy", PROGRAMS / "surface.py")
        yield started
        nothing_was_forbidden(started)


def nothing_was_forbidden(platform: Platform) -> None:
    """Each service's bus user had every right that it needed (squall_contracts.roles)."""
    denied = "\n".join(line for line in platform.log().splitlines() if BusForbidden.code in line)
    assert not denied, denied


@pytest.fixture
def client(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The SDK of this process talks to the platform."""
    use(platform, monkeypatch)
    return platform


@pytest.fixture
def client_of_several(several: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The SDK of this process talks to the platform with two of each."""
    use(several, monkeypatch)
    return several


def use(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address that platform from this process, for the length of a test."""
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, platform.client_environment()[name])


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    """The file to which user functions append a line for each thing that they do."""
    file = tmp_path / "effects"
    file.touch()
    return file
