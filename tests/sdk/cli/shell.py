"""The real `squall` command of this environment, as a user types it, with a home and temporary folder of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.support.platform import Process, belonging_to, eventually

SQUALL = Path(sys.executable).with_name("squall")
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    def ok(self) -> Ended:
        assert self.status == 0, f"status {self.status}\n{self.out}\n{self.err}"
        return self

    def refused(self, code: str, *told: str, status: int = 1) -> Ended:
        """It ended with that error, and said all of that."""
        assert self.status == status, f"status {self.status}\n{self.out}\n{self.err}"
        for words in (f"Error [{code}]: ", "Fix: ", *told):
            assert words in self.err, f"no {words!r} in\n{self.err}"
        assert "squall/cli" not in self.err, f"our own frames in\n{self.err}"
        return self


class Shell:
    """One user: `shell.write("app.py", ...)`, `shell.squall("run", "app.py")`, `shell.nothing_left()`."""

    def __init__(self) -> None:
        # Short: unix sockets in it may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="sq-"))
        self.work, self.home, self.temporary = (self.folder / name for name in ("work", "home", "tmp"))
        for folder in (self.work, self.home, self.temporary):
            folder.mkdir()
        self.squall_path = SQUALL

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SQUALL_", "OTEL_"))}
        mine.pop("PYTHONDONTWRITEBYTECODE", None)
        return {**mine, "SQUALL_HOME": str(self.home), "TMPDIR": str(self.temporary), "COLUMNS": "120", **more}

    def write(self, name: str, text: str) -> Path:
        file = self.work / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return file

    # --- running it

    def start(
        self, *words: object, streams: Any = subprocess.PIPE, stdin: Any = None, **more: str
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(SQUALL), *map(str, words)],
            cwd=self.work,
            env=self.environment(more),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=streams,
            stderr=streams,
            start_new_session=True,
        )

    def squall(self, *words: object, timeout_s: float = TIMEOUT_S, **more: str) -> Ended:
        return self.finish(self.start(*words, **more), timeout_s)

    def finish(self, child: subprocess.Popen[bytes], timeout_s: float = TIMEOUT_S) -> Ended:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            told = f"{out.decode()}\n{err.decode()}"
            raise AssertionError(f"{child.args!r} did not end within {timeout_s} s\n{told}") from None
        return Ended(child.returncode, out.decode(), err.decode())  # not text=True: that would eat carriage returns

    def on_terminal(self, *words: object, **more: str) -> Terminal:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        try:
            return Terminal(self.start(*words, streams=theirs, stdin=theirs, TERM="xterm-256color", **more), ours)
        finally:
            os.close(theirs)

    def python(self, program: str, timeout_s: float = TIMEOUT_S, **more: str) -> Ended:
        answer = subprocess.run(
            [sys.executable, "-c", dedent(program)],
            cwd=self.work,
            env=self.environment(more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ended(answer.returncode, answer.stdout, answer.stderr)

    # --- what is there

    def processes(self, words: str = "") -> list[Process]:
        """Everything that runs for this user (and says that on its command line)."""
        return [found for found in belonging_to(self.folder) if words in found.command]

    def temporary_files(self) -> list[str]:
        return sorted(str(path.relative_to(self.temporary)) for path in self.temporary.iterdir())

    def nothing_left(self, within_s: float = 30.0) -> None:
        eventually(lambda: not self.processes(), within_s=within_s, what=lambda: f"left: {self.processes()}")
        eventually(lambda: not self.temporary_files(), what=lambda: f"left: {self.temporary_files()}")

    def remove(self) -> None:
        for left in self.processes():
            left.signal(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


class Terminal:
    """A command on a terminal."""

    def __init__(self, child: subprocess.Popen[bytes], master: int) -> None:
        self.child = child
        self._master = master
        self.raw = ""

    def until(self, words: str, timeout_s: float = TIMEOUT_S) -> str:
        """Everything written so far, once the words are in it."""
        until = time.monotonic() + timeout_s
        while words not in self.raw:
            goes_on = self._read() and time.monotonic() < until
            assert goes_on, f"no {words!r} in\n{self.raw[-3000:]!r}"
        return self.raw

    def type(self, text: str) -> None:
        """As if somebody typed it."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """As Ctrl-C: a signal to everything in the foreground."""
        os.killpg(self.child.pid, signal.SIGINT)

    def end(self, timeout_s: float = TIMEOUT_S) -> int:
        """Reads to the end; the exit status."""
        until = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < until, f"no end in\n{self.raw[-3000:]!r}"
        status = self.child.wait(10)
        os.close(self._master)
        return status

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 1)[0]:
            return True
        try:
            piece = os.read(self._master, 1 << 16)
        except OSError:  # EIO: the last writer is gone
            return False
        self.raw += piece.decode(errors="replace")
        return bool(piece)
