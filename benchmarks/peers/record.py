"""What has been measured so far, on disk: an interrupted run goes on. One file, a line of JSON per session."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.peers.works import Sample, sample_from_wire


class Record:
    """The samples of one run, which `about` describes: commit, machine, size. Another one begins anew."""

    def __init__(self, file: Path, about: dict[str, str], *, fresh: bool = False) -> None:
        self._file = file
        self.samples: list[Sample] = []
        self.done: set[tuple[str, int]] = set()
        """Engine and round of sessions that have ended."""
        if not fresh and self._read(about):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        self.samples, self.done = [], set()
        file.write_text(json.dumps({"about": about}) + "\n")

    def _read(self, about: dict[str, str]) -> bool:
        if not self._file.exists():
            return False
        text = self._file.read_text()
        lines = text.splitlines()
        if not lines or json.loads(lines[0]) != {"about": about}:
            return False
        for line in lines[1:]:
            try:
                session = json.loads(line)
            except ValueError:  # half written when it was killed: that session is run again
                continue
            self.samples += [sample_from_wire(body) for body in session["samples"]]
            self.done.add((session["engine"], session["round"]))
        if not text.endswith("\n"):
            with self._file.open("a") as file:
                file.write("\n")
        return True

    def add(self, engine: str, round_number: int, samples: Iterable[Sample]) -> None:
        """A session that has ended."""
        new = list(samples)
        self.samples += new
        self.done.add((engine, round_number))
        line = {"engine": engine, "round": round_number, "samples": [sample.to_wire() for sample in new]}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
