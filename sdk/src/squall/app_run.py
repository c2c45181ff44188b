"""The `with app.run():` block: an app exists on the server for its time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from squall.blocking import run as run_in_thread
from squall.blocking import running_loop, warn_in_loop
from squall.errors import ExecutionError, InvalidError
from squall.place import is_local

if TYPE_CHECKING:
    from squall.app import App
    from squall.running import Running


class AppRun:
    """The `with app.run():` block."""

    def __init__(self, app: App, name: Optional[str], detach: bool, environment: Optional[str]) -> None:
        self._app, self._name, self._detach, self._environment = app, name, detach, environment
        self._running: Optional[Running] = None

    def __enter__(self) -> App:
        if running_loop() is not None:
            warn_in_loop("App.run", "async with app.run()")
        return self._enter()

    def _enter(self) -> App:
        app = self._app
        if not is_local():
            raise ExecutionError(
                "app.run() was reached inside a container",
                fix='Put it below `if __name__ == "__main__":` or into a local entrypoint.',
            )
        if app._running is not None:
            raise InvalidError("the app is already running", fix="Call its functions without another `app.run()`.")
        from squall.running import Running

        running = Running(app, self._name, self._detach, self._environment)
        app._running = self._running = running
        try:
            app._state = running.start()
        except BaseException:
            app._running = None
            raise
        return app

    def __exit__(self, _kind: Optional[type], error: Optional[BaseException], _traceback: Any) -> None:
        assert self._running is not None
        try:
            self._running.stop(error)
        finally:
            self._app._running = self._app._state = None

    async def __aenter__(self) -> App:
        return await run_in_thread(self._enter)

    async def __aexit__(self, kind: Optional[type], error: Optional[BaseException], traceback: Any) -> None:
        await run_in_thread(lambda: self.__exit__(kind, error, traceback))
