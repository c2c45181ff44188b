"""256 MiB go in and out while the services' memory stays bounded: they pass payloads on piece by piece."""

from __future__ import annotations

import hashlib

import pytest
from tests.support.platform import Platform, peak_rss_mib, reset_peak

import squall

pytestmark = pytest.mark.slow

SIZE = 256 << 20
MOST_MIB = 64
"""That a service may grow by."""


@pytest.mark.timeout(180)
def test_large_arguments_and_results_pass_in_bounded_memory(client: Platform) -> None:
    digest = squall.Function.from_name("surface", "digest")
    blob = squall.Function.from_name("surface", "blob")
    data = b"\xa5" * SIZE
    assert digest.remote(b"x")[1] == 1  # what a first call loads is not what is measured
    assert blob.remote(1) == b"\x5a"
    services = {part.name: part.pid for part in client.parts()}
    for pid in services.values():
        reset_peak(pid)
    before = {name: peak_rss_mib(pid) for name, pid in services.items()}

    assert digest.remote(data) == (hashlib.sha256(data).hexdigest(), SIZE)
    answer = blob.remote(SIZE)

    assert len(answer) == SIZE
    assert hashlib.sha256(answer).digest() == hashlib.sha256(b"\x5a" * SIZE).digest()
    grown = {name: peak_rss_mib(pid) - before[name] for name, pid in services.items()}
    assert max(grown.values()) < MOST_MIB, grown
