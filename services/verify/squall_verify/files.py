"""The files of a run as evidence: the logs of its callers, and what user code wrote."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from squall_verify.evidence import Effect, Seen
from squall_verify.state import WebRun

EFFECTS, WEB = "effects", ".web"


def seen(folder: Path) -> tuple[Seen, ...]:
    """The logs of all callers. A line that a killed caller did not finish is none."""
    found = [line for file in sorted(folder.glob("client-*.jsonl")) for line in log_of(file)]
    return tuple(sorted(found, key=lambda each: each.at))


def log_of(file: Path) -> list[Seen]:
    """One caller's."""
    found = []
    for line in file.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            found.append(Seen(**json.loads(line)))
    return found


def make_effects(folder: Path) -> Path:
    """The file that user code writes to, whoever it runs as, and the one of the web function beside it."""
    folder.mkdir()
    folder.chmod(0o777)
    for name in (EFFECTS, f"{EFFECTS}{WEB}"):
        (folder / name).touch()
        (folder / name).chmod(0o666)
    return folder / EFFECTS


def effects(file: Path) -> tuple[Effect, ...]:
    """Every line that user code wrote."""
    return tuple(Effect(**json.loads(line)) for line in file.read_text().splitlines())


def web_runs(file: Path) -> tuple[WebRun, ...]:
    """Every line that the web function wrote, beside the others'."""
    written = file.with_name(f"{file.name}{WEB}")
    return tuple(WebRun(**json.loads(line)) for line in written.read_text().splitlines()) if written.exists() else ()
