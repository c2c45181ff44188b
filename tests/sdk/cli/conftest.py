"""A user for each test; and one with a platform that stays, for tests that need nothing but a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.sdk.cli.shell import Shell


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A user without a server."""
    user = Shell()
    try:
        yield user
    finally:
        user.remove()


@pytest.fixture(scope="module")
def served() -> Iterator[Shell]:
    """A user whose `squall up` runs."""
    user = Shell()
    try:
        user.squall("up").ok()
        yield user
        user.squall("down")
    finally:
        user.remove()
