"""A deploy is one move of a pointer: every call runs one version in full, and none fails while versions change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.flows.conftest import PROGRAMS
from tests.support.platform import Platform, eventually

import squall

pytestmark = pytest.mark.slow


def write_version(folder: Path, number: int) -> Path:
    program = folder / "versions.py"
    program.write_text((PROGRAMS / "versions.py").read_text().replace("VERSION = 1", f"VERSION = {number}"))
    return program


@dataclass
class Present:
    """Which versions may have been the present one: a change may take effect at any moment between begin and end."""

    history: tuple[int, ...]
    begun: int = 0
    ended: int = 0

    @contextmanager
    def change(self) -> Iterator[int]:
        """To the next one, which is handed out."""
        self.begun += 1
        yield self.history[self.begun]
        self.ended = self.begun

    @property
    def now(self) -> int:
        """The newest that was begun."""
        return self.history[self.begun]

    def during(self, ended_before: int) -> tuple[int, ...]:
        """Since so many changes had ended."""
        return self.history[ended_before : self.begun + 1]


def test_calls_go_on_while_versions_change(client: Platform, tmp_path: Path) -> None:
    client.squall("deploy", write_version(tmp_path, 1))
    both = squall.Function.from_name("versions", "both")
    assert both.remote() == (1, 1)
    present = Present((1, 2, 3, 1))
    seen: list[tuple[tuple[int, int], tuple[int, ...]]] = []
    enough = threading.Event()

    def keep_calling() -> None:
        while not enough.is_set():
            ended = present.ended
            seen.append((both.remote(), present.during(ended)))

    caller = threading.Thread(target=keep_calling)
    caller.start()
    try:
        for _ in range(2):
            with present.change() as number:
                client.squall("deploy", write_version(tmp_path, number))
            assert both.remote() == (number, number), "a call made after the deploy ran an older version"
            eventually(lambda: any(own == present.now for (own, _), _ in seen), within_s=60)
        with present.change():
            client.squall("app", "rollback", "versions", "v1")
        assert both.remote() == (1, 1), "a call made after the rollback ran a newer version"
    finally:
        enough.set()
        caller.join(60)

    assert {1, 2, 3} <= {own for (own, _), _ in seen}
    for (own, nested), possible in seen:
        # A call from a container is a call of its own: it runs on the version that is present when it is made, which
        # after a cold start may be a later one still.
        assert own in possible, f"{own} ran, present was one of {possible}"
        assert nested in possible[possible.index(own) :], f"{own} called {nested}, present was one of {possible}"


def test_a_deploy_that_changes_nothing_makes_no_version(client: Platform, tmp_path: Path) -> None:
    program = tmp_path / "steady.py"
    program.write_text((PROGRAMS / "versions.py").read_text().replace('"versions"', '"steady"'))

    client.squall("deploy", program)
    again = client.squall("deploy", program)

    assert "has not changed since version 1" in again.stdout


def test_calls_accepted_before_a_deploy_run_on_the_version_that_accepted_them(
    client: Platform, tmp_path: Path, effects: Path
) -> None:
    gate = tmp_path / "gate"
    program = tmp_path / "older.py"
    text = (PROGRAMS / "surface.py").read_text().replace('App("surface")', 'App("older")')
    program.write_text(text)
    client.squall("deploy", program)
    hold = squall.Function.from_name("older", "hold")
    before = [hold.spawn(str(effects), str(gate), n) for n in range(3)]

    program.write_text(text.replace("    return value\n", "    return 'newer', value\n"))
    client.squall("deploy", program)
    after = hold.spawn(str(effects), str(gate), 9)
    gate.touch()

    assert squall.FunctionCall.gather(*before) == [0, 1, 2]
    assert after.get(timeout=30) == ("newer", 9)
