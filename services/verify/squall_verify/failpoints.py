"""Fail points of a platform, armed from outside in single processes, and taken back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from signal import SIGUSR2

from squall.errors import LocalPlatformError
from squall_service.failpoints import parse
from squall_verify.platform import Part
from squall_verify.processes import process
from squall_verify.waiting import eventually

VARIABLE = "SQUALL_TESTING_FAILPOINTS_DIR"
READ_S = 10.0


class FailPoints:
    """Fail points of one platform; give `environment` to it when it is made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def environment(self) -> dict[str, str]:
        return {VARIABLE: str(self._folder)}

    def arm(self, points: str, *parts: Part) -> None:
        """Replace what these parts have armed. A part that is started again has nothing armed."""
        parse(points)
        for part in parts:
            file = self._folder / str(part.pid)
            file.with_suffix(".new").write_text(points)
            file.with_suffix(".new").rename(file)
            with contextlib.suppress(ProcessLookupError):
                os.kill(part.pid, SIGUSR2)
        for part in parts:
            self._await_read(part)

    def _await_read(self, part: Part) -> None:
        file = self._folder / str(part.pid)

        def read() -> bool:
            return not file.exists() or gone(part)

        eventually(read, within_s=READ_S, what=f"{part.name} does not read its fail points")
        if file.with_suffix(".refused").exists():
            raise LocalPlatformError(f"{part.name} refuses its fail points")
        file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def fatal(self, points: str, *parts: Part, within_s: float = 20.0) -> Iterator[list[Part]]:
        """The block makes one of these parts kill itself; it is in the list afterwards, and the others are disarmed."""
        victims: list[Part] = []
        self.arm(points, *parts)
        yield victims
        victims += eventually(
            lambda: [part for part in parts if gone(part)][:1], within_s=within_s, what=f"nobody died of {points}"
        )
        self.arm("", *(part for part in parts if part not in victims))


def gone(part: Part) -> bool:
    """Whether the process that the part was has ended."""
    found = process(part.pid)
    return found is None or found.state == "Z"
