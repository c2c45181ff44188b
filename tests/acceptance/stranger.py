"""A stranger's machine: a clean copy of the tree with its own environment, and the real CLI in it.

Owns the copy, the user's folder and every process that mentions it.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.platform import ROOT, belonging_to, eventually

PROGRAMS = Path(__file__).parent / "programs"
SET_UP_S = 300
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def must_succeed(self) -> Ended:
        assert self.status == 0, f"status {self.status}\n{self.out}\n{self.err}"
        return self

    def must_refuse(self, code: str, cause: str, fix: str) -> Ended:
        """It failed with an error of code, cause and fix, on stderr, without a traceback of ours."""
        told = re.sub(r"\s+", " ", self.err)  # the terminal's width decides where lines break
        assert self.status != 0, f"it succeeded\n{self.out}\n{self.err}"
        assert re.search(rf"\b{re.escape(code)}\b", told), f"no code {code!r} in\n{self.err}"
        assert re.search(cause, told), f"no cause {cause!r} in\n{self.err}"
        assert re.search(fix, told), f"no fix {fix!r} in\n{self.err}"
        assert "squall/cli" not in told, f"our own frames in\n{self.err}"
        return self


class Terminal:
    """A command on a terminal, read as it writes."""

    def __init__(self, child: subprocess.Popen[str], master: int) -> None:
        self.child = child
        self._master = master
        self._raw = b""

    @property
    def text(self) -> str:
        """What it has written, without colours and cursor movements."""
        return CONTROL.sub("", self._raw.decode(errors="replace"))

    def wait_for(self, words: str, timeout_s: float = 60) -> None:
        """Until the words have been written."""
        until = time.monotonic() + timeout_s
        while words not in self.text:
            goes_on = self._read() and time.monotonic() < until
            assert goes_on, f"no {words!r} in\n{self.text[-3000:]}"

    def finish(self, timeout_s: float = 60) -> str:
        """Until it ends; everything that it wrote."""
        until = time.monotonic() + timeout_s
        try:
            while self._read():
                assert time.monotonic() < until, f"no end in {timeout_s} s\n{self.text[-3000:]}"
            self.child.wait(10)
        finally:
            self.child.kill()
            os.close(self._master)
        return self.text

    def _read(self) -> bool:
        """One piece, if there is one within a second; False at the end."""
        if select.select([self._master], [], [], 1)[0]:
            try:
                piece = os.read(self._master, 1 << 16)
            except OSError:  # EIO: the last writer has closed it
                return False
            self._raw += piece
            return bool(piece)
        return True


class Stranger:
    """A user on a fresh machine: a clean copy of the tree, an empty home, temporary files of their own."""

    def __init__(self, copy: Path, folder: Path) -> None:
        self.copy = copy
        self.folder = folder
        self.home = folder / "home"
        self.temporary = folder / "tmp"
        self.work = folder / "work"
        for made in (self.home, self.temporary, self.work):
            made.mkdir(parents=True)

    def environment(self, **more: str) -> dict[str, str]:
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("SQUALL_", "OTEL_", "VIRTUAL_ENV"))}
        return {**mine, "TMPDIR": str(self.temporary), "SQUALL_HOME": str(self.home), "COLUMNS": "120", **more}

    def start(self, *words: object, **more: str) -> subprocess.Popen[str]:
        """Start `scripts/squall WORDS` in the work folder."""
        return self._start(words, subprocess.PIPE, more)

    def terminal(self, *words: object, **more: str) -> Terminal:
        """The same on a terminal."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        try:
            return Terminal(self._start(words, theirs, {"TERM": "xterm-256color", **more}), ours)
        finally:
            os.close(theirs)

    def _start(self, words: tuple[object, ...], output: Any, more: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.copy / "scripts" / "squall"), *map(str, words)],
            cwd=self.work,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )

    def squall(self, *words: object, timeout_s: float = 60, **more: str) -> Ended:
        """Run `scripts/squall WORDS` in the work folder."""
        child = self.start(*words, **more)
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            raise AssertionError(f"squall {words} did not end within {timeout_s} s\n{out}\n{err}") from None
        return Ended(child.returncode, out, err)

    def python(self, program: str, timeout_s: float = 60, **more: str) -> Ended:
        """Run Python text in another shell, with the environment of the copy."""
        answer = subprocess.run(
            [self.copy / ".venv/bin/python", "-c", program],
            cwd=self.work,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ended(answer.returncode, answer.stdout, answer.stderr)

    def has(self, name: str, text: str | None = None) -> Path:
        """Put a program into the work folder: that text, or the file of that name in `programs`."""
        file = self.work / name
        file.write_text(text if text is not None else (PROGRAMS / name).read_text())
        return file

    def left_nothing(self) -> None:
        """No process and no temporary file of this user is left."""
        eventually(lambda: not belonging_to(self.folder), what=lambda: f"processes: {belonging_to(self.folder)}")
        left = sorted(path.name for path in self.temporary.iterdir())
        assert not left, f"temporary files: {left}"

    def end(self) -> None:
        """Kill whatever is left."""
        for left in belonging_to(self.folder):
            left.signal(signal.SIGKILL)


def copy_tree(target: Path) -> None:
    """The files that git has or would add, nothing that was made in the tree."""
    if not (ROOT / ".git").exists():
        shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".*cache", ".venv*", "__pycache__"), symlinks=True)
        return
    answer = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in answer.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def set_up(copy: Path) -> None:
    """The first use of `scripts/squall` makes the environment."""
    made = subprocess.run(
        [copy / "scripts" / "squall", "version"],
        capture_output=True,
        text=True,
        timeout=SET_UP_S,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("SQUALL_", "VIRTUAL_ENV"))},
    )
    assert made.returncode == 0, made.stderr
