"""An app while it runs: its server, heartbeat, log lines and status, and how it ends."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Callable, Optional

from squall import blocking, output, publish, session
from squall.app import App
from squall.app_on_server import AppState
from squall.client import BROKEN, Client, Retry, query
from squall.errors import NotFoundError, SquallError
from squall.http_api.apps import AppStatus
from squall.http_api.routes import Route
from squall.spec import from_wire

HEARTBEAT_S = 5.0
STATUS_S = 1.0
STOP_TIMEOUT_S = 15.0
LOGS_TIMEOUT_S = 10.0
"""How long to wait for the last lines after the app was stopped."""
LOGS_QUIET_S = 5.0
"""Silence after which no last line is expected any more."""


class Running:
    """One `app.run()`."""

    def __init__(self, app: App, name: Optional[str], detach: bool, environment: Optional[str]) -> None:
        self._app, self._name, self._detach, self._environment = app, name, detach, environment
        self._stack = contextlib.ExitStack()
        self._threads: list[_Background] = []
        self._logs: Optional[_Logs] = None
        self._state: Optional[AppState] = None

    def start(self) -> AppState:
        """Connect, publish, and begin to watch."""
        try:
            here = self._stack.enter_context(session.for_app())
            mode = "detached" if self._detach else "ephemeral"
            name = publish.ephemeral_name(self._app, self._name)
            state = publish.publish(self._app, here, mode, name, self._environment or here.environment).state
        except BaseException:
            self._stack.close()
            raise
        self._state = state
        shown = output.current()
        shown.app_created(state.app_id, name)
        for function in state.functions:
            shown.function_created(function)
        self._watch(state, shown)
        return state

    def _watch(self, state: AppState, shown: output.Output) -> None:
        client, app_id = state.session.client, state.app_id
        if not self._detach:
            self._threads.append(_Background("squall-heartbeat", lambda: _heartbeats(client, app_id)))
        if shown.live:
            self._logs = _Logs(client, app_id, shown)
            self._threads.append(_Background("squall-status", lambda: _status(client, app_id, shown)))

    def stop(self, error: Optional[BaseException]) -> None:
        """End the app (a detached one only if the block failed), the watching, and a platform that was started here."""
        state, shown = self._state, output.current()
        assert state is not None
        try:
            state.session.recorder.flush()
            if not self._detach or error is not None:
                reason = "its program ended" if error is None else f"its program failed: {type(error).__name__}"
                with contextlib.suppress(SquallError, OSError):
                    path = Route.APP_STOP.format(app=state.app_id)
                    state.session.client.once("POST", path, {"reason": reason}, STOP_TIMEOUT_S)
                if self._logs is not None:
                    self._logs.finish()
        finally:
            for thread in self._threads:
                thread.stop()
            if self._logs is not None:
                self._logs.stop()
            if self._detach and error is None:
                shown.app_detached(state.app_id)
            else:
                shown.app_done(state.app_id, aborted=error is not None)
            self._stack.close()


class Watch:
    """What keeps an ephemeral app alive and shows what it does, for as long as it is wanted."""

    def __init__(self, client: Client, app_id: str, shown: output.Output) -> None:
        self._logs = _Logs(client, app_id, shown)
        self._threads = [
            _Background("squall-heartbeat", lambda: _heartbeats(client, app_id)),
            _Background("squall-status", lambda: _status(client, app_id, shown)),
        ]

    def finish(self) -> None:
        """Wait for the last lines of an app that was stopped, then end."""
        self._logs.finish()
        self.stop()

    def stop(self) -> None:
        """Watch no more."""
        for thread in self._threads:
            thread.stop()
        self._logs.stop()


class _Background:
    """A daemon thread for work that ends when it is told to."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._abort = blocking.Abort()
        self._thread = threading.Thread(target=blocking.under, args=(self._abort, work), name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and wait until it has."""
        self._abort.set()
        self._thread.join(5.0)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended by itself."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


def _heartbeats(client: Client, app_id: str) -> None:
    path = Route.APP_HEARTBEAT.format(app=app_id)
    while True:
        blocking.sleep(HEARTBEAT_S)
        try:
            client.json("POST", path, {})
        except NotFoundError:
            return
        except SquallError:
            continue  # calls will tell; the app lives for 25 s without us


def _status(client: Client, app_id: str, shown: output.Output) -> None:
    path = Route.APP_STATUS.format(app=app_id)
    while True:
        blocking.sleep(STATUS_S)
        try:
            shown.status(from_wire(AppStatus, client.json("GET", path)))
        except SquallError:
            continue


class _Logs:
    """The app's log lines, followed until its last container is gone."""

    def __init__(self, client: Client, app_id: str, shown: output.Output) -> None:
        self._client, self._path, self._shown = client, Route.APP_LOGS.format(app=app_id), shown
        self._last_line_at = time.monotonic()
        self._thread = _Background("squall-logs", self._follow)

    def finish(self) -> None:
        """Wait for the last lines of an app that was stopped."""
        self._last_line_at = started = time.monotonic()
        while not self._thread.wait(0.05):
            now = time.monotonic()
            if now - started > LOGS_TIMEOUT_S or now - self._last_line_at > LOGS_QUIET_S:
                return

    def stop(self) -> None:
        self._thread.stop()

    def _follow(self) -> None:
        cursor: Optional[str] = None
        retry = Retry(self._client)
        while True:
            try:
                with self._client.stream("GET", query(self._path, follow=1, cursor=cursor)) as stream:
                    for line in stream.lines():
                        entry = publish.log_entry(line)
                        cursor = entry.cursor or cursor
                        self._last_line_at = time.monotonic()
                        self._shown.log(entry)
                        retry.progress()
                return
            except BROKEN as error:
                try:
                    retry.wait(error)
                except SquallError:
                    return
            except SquallError:
                return
