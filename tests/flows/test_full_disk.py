"""A disk of nats-server that fills up: calls are refused in time, nothing accepted is lost, and it ends by itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from tests.flows.conftest import PROGRAMS, use
from tests.support.platform import Platform, eventually

import squall
from squall import exception

pytestmark = [pytest.mark.root, pytest.mark.slow]
SIZE_MIB, RESERVE_MIB = 96, 48


@pytest.fixture
def small() -> Iterator[Platform]:
    """A platform whose bus has a small disk of its own."""
    platform = Platform(environment={"SQUALL_GATEWAY_RESERVE_MIB": str(RESERVE_MIB)})
    store = platform.data / "bus"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", store], check=True)
    try:
        with platform:
            yield platform
    finally:
        subprocess.run(["umount", "--lazy", store], check=False, capture_output=True)
        platform.remove()


def test_a_filling_disk_refuses_new_calls_and_keeps_the_accepted_ones(
    small: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(small, monkeypatch)
    small.squall("deploy", PROGRAMS / "surface.py")
    square = squall.Function.from_name("surface", "square")
    assert square.remote(2) == 4
    filler = small.data / "bus" / "filler"
    accepted = [square.spawn(n) for n in range(20)]
    filler.write_bytes(bytes((SIZE_MIB - RESERVE_MIB) << 20))

    def refused() -> exception.StorageFullError | None:
        try:
            accepted.append(square.spawn(len(accepted)))
        except exception.StorageFullError as error:
            return error
        return None

    error = eventually(refused, what="no call was refused")
    assert "the disk of the bus" in error.message
    assert "MiB left" in error.message
    assert error.hint
    assert [call.get(timeout=30) for call in accepted] == [n * n for n in range(len(accepted))]

    filler.unlink()
    assert eventually(lambda: not refused(), what="calls are not taken again")
    assert accepted[-1].get(timeout=30) == (len(accepted) - 1) ** 2
    assert "calls_refused" in small.log()
    assert "calls_taken_again" in small.log()
