"""What an app is on the server: where it runs, its id, tags, logs and numbers, and how it is stopped.

Owns the state "runs as ...". What an app declares is in `app`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from squall.blocking import blocking, immediate
from squall.errors import ExecutionError
from squall.origin import refuse_client

if TYPE_CHECKING:
    from squall.autoscaler import FunctionStats
    from squall.infos import AppInfo
    from squall.logs import Logs
    from squall.session import Session


class AppState(NamedTuple):
    """Where a running or deployed app is."""

    session: Session
    app_id: str
    version: int
    functions: Mapping[str, str]
    """Function id by name."""
    script: Optional[str]
    """Name of the user's `__main__` in its containers, if it is there."""


class AppOnServer:
    """An app that may run: by itself, or as a part of others that include it."""

    def __init__(self, name: Optional[str], tags: Optional[dict[str, str]]) -> None:
        self._name = name
        self.tags: dict[str, str] = dict(tags or {})
        self._state: Optional[AppState] = None
        self._included_in: list[AppOnServer] = []

    @property
    def name(self) -> Optional[str]:
        """The name, if it has one."""
        return self._name

    @property
    def app_id(self) -> Optional[str]:
        """Id on the server while it runs or after it was deployed."""
        return self.state.app_id if self.state else None

    @property
    def description(self) -> Optional[str]:
        """The name for people."""
        return self._name

    @property
    def state(self) -> Optional[AppState]:
        """Where it runs, by itself or as a part of an app that includes it; None when it does not."""
        if self._state is not None:
            return self._state
        return next((other.state for other in self._included_in if other.state is not None), None)

    def function_id(self, name: str) -> Optional[str]:
        """Id of a function while the app runs."""
        return self.state.functions.get(name) if self.state else None

    @blocking
    def set_tags(self, tags: Mapping[str, str], *, client: None = None) -> None:
        """Replace the tags of the app that runs or is deployed: all of them, those that are not given are gone."""
        refuse_client(client)
        from squall.http_api.routes import Route

        state = self._known_state()
        self.tags = dict(tags)
        state.session.client.json("POST", Route.APP_TAGS.format(app=state.app_id), {"tags": self.tags})

    @blocking
    def get_tags(self, *, client: None = None) -> dict[str, str]:
        """The tags that the app has on the server."""
        refuse_client(client)
        from squall.http_api.routes import Route

        state = self._known_state()
        answer = state.session.client.json("GET", Route.APP_TAGS.format(app=state.app_id))
        return dict(answer["tags"])

    @property
    def logs(self) -> Logs:
        """What its containers wrote: `logs.fetch()`, `logs.tail()`, `logs.stream()`."""
        from squall.logs import Logs, LogScope

        return Logs(lambda: LogScope(self._known_state().session.client, self._known_state().app_id))

    @blocking
    def info(self) -> AppInfo:
        """What the server knows of it."""
        from squall import infos

        state = self._known_state()
        return infos.app_info(state.session.client, state.app_id)

    @blocking
    def stats(self, since: Any = None, until: Any = None) -> dict[str, FunctionStats]:
        """What its functions do now, by name."""
        from squall import infos

        state = self._known_state()
        return infos.app_stats(state.session.client, state.app_id, {"since": since, "until": until})

    def _known_state(self) -> AppState:
        if self.state is None:
            raise ExecutionError("the app is not running", fix="Use `with app.run():`, deploy it, or `App.lookup`.")
        return self.state

    @immediate
    def get_dashboard_url(self) -> str:
        """Where the server shows it, as JSON to who sends a token: containers, backlog, why inputs wait.

        The list of apps while it does not run; empty when no server is known."""
        from squall import pages

        state = self.state
        return pages.of_app("") if state is None else pages.of_app(state.app_id, state.session.client)

    @blocking
    def stop(self) -> None:
        """Stop it on the server: queued and running calls are cancelled."""
        if self._state is None:
            raise ExecutionError(
                "the app does not run", fix="Use `squall app stop NAME` for an app that another program started."
            )
        from squall.http_api.routes import Route

        state, self._state = self._state, None
        state.session.client.json("POST", Route.APP_STOP.format(app=state.app_id), {"reason": "stopped by its program"})
