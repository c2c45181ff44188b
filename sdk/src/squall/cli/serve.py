"""`squall serve`: an app that runs while its program is edited. Each save is loaded by a process of its own, which
publishes it into the same app: its id stays, calls that run end on the code that they began with.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from squall import output
from squall.cli import server
from squall.cli.reference import Reference, parse
from squall.cli.screen import PlainScreen
from squall.errors import ProgramError, SquallError
from squall.http_api.routes import Route
from squall.running import STOP_TIMEOUT_S, Watch
from squall.session import Session

BEGUN_MS = 250
LOOK_S = 0.25
"""How often the end of the time is looked for."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says."""

    name: Optional[str] = None
    environment: Optional[str] = None
    as_module: bool = False
    timeout_s: Optional[float] = None
    timestamps: bool = False


@dataclass(frozen=True)
class Generation:
    """What one load of the program has published."""

    app_id: str
    name: str
    functions: Mapping[str, str]
    files: frozenset[str]
    """Everything that it is made of here."""


def serve(text: str, options: ServeOptions) -> int:
    """Serves the app that `text` points at until Ctrl-C, or until its time is over."""
    reference = parse(text, options.as_module)
    if reference.path and not Path(reference.path).is_file():
        raise ProgramError(f"there is no file {reference.path}", fix="Name the Python file that holds the app.")
    shown = PlainScreen(quiet=False, timestamps=options.timestamps)
    with output.use(shown), server.for_run(shown.doing) as session:
        serving = Serving(reference, options, session, shown)
        try:
            serving.run()
        except KeyboardInterrupt:
            sys.stderr.write("\n")
        finally:
            serving.stop()
    return 0


class Serving:
    """The app, and whoever looks after it, from one generation to the next."""

    def __init__(self, reference: Reference, options: ServeOptions, session: Session, shown: output.Output) -> None:
        self._reference, self._options, self._session, self._shown = reference, options, session, shown
        self._present: Optional[Generation] = None
        self._loaded_ns = 0
        """When the last load began: what was written since is not in it."""
        self._watch: Optional[Watch] = None

    def run(self) -> None:
        """Load, and load again after each change."""
        seconds = self._options.timeout_s
        until = None if seconds is None else time.monotonic() + seconds
        self._load()
        while True:
            with _changes(self._folders()) as changes:
                changed = self._next(changes, until)
            if changed is None:
                _say("The time is over.")
                return
            _say(f"… {', '.join(sorted(os.path.basename(path) for path in changed)[:3])} changed: loading it again")
            self._load()

    def stop(self) -> None:
        """End the app and everything that follows it."""
        if self._present is None:
            return
        with contextlib.suppress(SquallError, OSError):
            path = Route.APP_STOP.format(app=self._present.app_id)
            self._session.client.once("POST", path, {"reason": "squall serve has ended"}, STOP_TIMEOUT_S)
        if self._watch is not None:
            self._watch.finish()
        _say(f"✓ Stopped app {self._present.name} ({self._present.app_id}).")

    # --- what changes

    def _folders(self) -> list[str]:
        """Folders are watched, not files: editors save by renaming."""
        return sorted({os.path.dirname(file) for file in self._files()} or {os.getcwd()})

    def _files(self) -> set[str]:
        files = set(self._present.files) if self._present else set()
        if self._reference.path:
            files.add(os.path.abspath(self._reference.path))
        return files

    def _written_since(self) -> set[str]:
        """What was written while it was loaded, or before anybody watched."""
        found = set()
        for file in self._files():
            with contextlib.suppress(OSError):
                if os.stat(file).st_mtime_ns > self._loaded_ns:
                    found.add(file)
        return found

    def _next(self, changes: queue.Queue[set[str]], until: Optional[float]) -> Optional[set[str]]:
        """What was changed, of that which matters; None when the time is over."""
        while until is None or time.monotonic() < until:
            try:
                paths = changes.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            files = self._files()
            mine = {path for path in paths or self._written_since() if path in files or path.endswith(".py")}
            if mine:
                return mine
        return None

    # --- a generation

    def _load(self) -> None:
        self._loaded_ns = time.time_ns()
        before, loaded = self._present, self._publish()
        if loaded is None:
            _say("… waiting for a change" if before is None else "… the app goes on as it was; waiting for a change")
            return
        self._present = loaded
        if before is None or before.app_id != loaded.app_id:
            self._announce(loaded)
            return
        added = loaded.functions.keys() - before.functions.keys()
        changed = {name for name in loaded.functions if loaded.functions[name] != before.functions.get(name)} - added
        gone = before.functions.keys() - loaded.functions.keys()
        news = [("changed", changed), ("new", added), ("gone", gone)]
        told = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in news if names)
        _say(f"✓ Loaded. {told[0].upper()}{told[1:]}." if told else "✓ Loaded. Nothing has changed.")

    def _announce(self, loaded: Generation) -> None:
        if self._watch is not None:
            self._watch.stop()
        self._watch = Watch(self._session.client, loaded.app_id, self._shown)
        url = self._session.client.address.url
        _say(f"✓ Serving app {loaded.name} ({loaded.app_id}). It is loaded again when you save; Ctrl-C stops it.")
        for name in sorted(loaded.functions):
            _say(f"  POST {url}{Route.FUNCTION_CALL.format(app=loaded.app_id, function=name)}")

    def _publish(self) -> Optional[Generation]:
        """Load and publish in a process of its own: modules of an earlier load must not be in the way."""
        receiving, sending = os.pipe()
        wanted = {
            "reference": self._reference.text,
            "as_module": self._options.as_module,
            "name": self._options.name,
            "environment": self._options.environment or self._session.environment,
            "app_id": self._present.app_id if self._present else None,
            "answer": sending,
        }
        address = self._session.client.address
        environment = {**os.environ, "SQUALL_SERVER_URL": address.url, "SQUALL_TOKEN": address.token}
        child = subprocess.Popen(
            [sys.executable, "-m", "squall.cli.generation", json.dumps(wanted)],
            env=environment,
            pass_fds=(sending,),
            stdin=subprocess.DEVNULL,
        )
        os.close(sending)
        try:
            with open(receiving, encoding="utf-8") as answer:
                told = answer.read()
            child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        return _generation(json.loads(told)) if told else None


def _generation(told: Mapping[str, Any]) -> Generation:
    return Generation(told["app_id"], told["name"], told["functions"], frozenset(told["files"]))


@contextlib.contextmanager
def _changes(folders: list[str]) -> Iterator[queue.Queue[set[str]]]:
    """Sets of paths that were changed, as they come; an empty one when the watching has begun."""
    import watchfiles

    found: queue.Queue[set[str]] = queue.Queue()
    over = threading.Event()

    def watch() -> None:
        # In a thread: in the main thread it would swallow what signal handlers raise.
        watched = watchfiles.watch(
            *folders, stop_event=over, recursive=False, rust_timeout=BEGUN_MS, yield_on_timeout=True
        )
        for number, changes in enumerate(watched):
            if changes or not number:
                found.put({path for _, path in changes})

    thread = threading.Thread(target=watch, name="squall-files", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
