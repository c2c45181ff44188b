"""The older spellings of `@app.server`: `@squall.experimental.http_server(port)` below `@app.cls()`, and
`@app._experimental_server`. Both answer everybody, as they did where they come from: programs send no token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

from squall.errors import InvalidError
from squall.markers import CONCURRENT
from squall.old_names import warn_renamed

if TYPE_CHECKING:
    from squall.app import App
    from squall.declaration import Declaration
    from squall.server import Server

SERVED = "__squall_served__"


def http_server(
    port: Optional[int] = None,
    *,
    proxy_regions: Sequence[str] = (),
    startup_timeout: float = 30,
    exit_grace_period: Optional[float] = None,
    h2_enabled: bool = False,
) -> Callable[[type], type]:
    """The class starts a server on `port` in an enter hook. `proxy_regions` change nothing: requests go to your
    gateway."""
    if port is None or isinstance(port, type):
        raise TypeError("write `@squall.experimental.http_server(port)`: the decorator needs the port")
    said = {
        "port": port,
        "startup_timeout": startup_timeout,
        "exit_grace_period": exit_grace_period or 0,
        "h2_enabled": h2_enabled,
    }

    def mark(raw: type) -> type:
        if not isinstance(raw, type):
            raise InvalidError(f"@http_server decorates a class, got {raw!r:.80}", fix="Put it below `@app.cls()`.")
        setattr(raw, SERVED, said)
        return raw

    return mark


def server_of(app: App, raw: type, declaration: Declaration) -> Server:
    """What `@app.cls` makes of a class with that mark."""
    from squall.server import declare

    warn_renamed("@squall.experimental.http_server below @app.cls is called @app.server now", declaring=True)
    most, target = getattr(raw, CONCURRENT, (None, None))
    if CONCURRENT in vars(raw):
        delattr(raw, CONCURRENT)
    given = dict(getattr(raw, SERVED))
    given.update(unauthenticated=True, max_concurrency=most, target_concurrency=target)
    given.update(min_containers=declaration.min_containers, max_containers=declaration.max_containers)
    return declare(app, **given, declaration=declaration)(raw)


def experimental_server(app: App, **keywords: Any) -> Callable[[type], Server]:
    """What `App._experimental_server` does."""
    warn_renamed("@app._experimental_server is called @app.server(unauthenticated=True) now", declaring=True)
    return app.server(**{"unauthenticated": True, **keywords})
