"""Tells whoever started the platform how it went: one line of JSON on standard output, and the state file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from squall.errors import SquallError, to_wire
from squall_embedded.state import Announcement, write_private


class Announcer:
    """The first announcement goes to both, later ones (a part was started anew) to the file only."""

    def __init__(self, state_file: Path) -> None:
        self._state_file = state_file
        self._said = False

    def announce(self, announcement: Announcement) -> None:
        """It is ready, here."""
        self._state_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = announcement.as_json()
        write_private(self._state_file, line)
        if not self._said:
            self._said = True
            _say(line)


def refuse(error: SquallError) -> int:
    """It could not be started, because of this; the exit status for it."""
    sys.stderr.write(f"{error.code}: {error.message}\n")
    sys.stderr.flush()
    _say(json.dumps({"error": to_wire(error)}, default=str))
    return 1


def _say(line: str) -> None:
    try:
        os.write(sys.stdout.fileno(), line.encode() + b"\n")
    except OSError:
        return  # nobody listens any more
    # What a library prints later goes to the log: the reader of the pipe is gone after the first line.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
