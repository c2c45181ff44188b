"""What `@app.local_entrypoint()` makes of a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from squall.app import App


class LocalEntrypoint:
    """A function that `squall run` runs here, with the app running. Calling it is calling the function."""

    def __init__(self, app: App, raw: Callable[..., Any], name: str) -> None:
        self.app, self.raw, self.name = app, raw, name
        self.__doc__, self.__name__, self.__module__ = raw.__doc__, name, raw.__module__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.raw(*args, **kwargs)

    def _squall_raw(self) -> Callable[..., Any]:
        return self.raw
