"""What `squall up` says about containers, in one line."""

from __future__ import annotations

from typing import Any

import pytest

from squall.cli import machine
from squall.local import LocalServer


@pytest.mark.parametrize(
    ("backends", "words"),
    [
        (["process"], "Containers are plain processes; `squall doctor` says what sandboxes need."),
        (["process", "sandbox"], "functions and images that need more get sandboxes."),
        (["gvisor"], "Containers are isolated: gvisor."),
        ([], "see `squall node list`"),
    ],
)
def test_how_containers_are_made_is_one_line(backends: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(address: Any) -> dict[str, Any]:
        asked.append(address.url)
        return {"nodes": [{"backends": backends}] if backends else []}

    monkeypatch.setattr(machine, "_ask", ask)
    line = machine._containers(LocalServer(url="http://127.0.0.1:1", token="t", pid=1))
    assert asked == ["http://127.0.0.1:1"]
    assert words in line
    assert "\n" not in line
