"""Where a browser or `curl` finds what the server knows of an object: what `get_dashboard_url()` returns.

The server has no pages for people; these addresses answer with JSON, to who sends a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from squall.http_api.routes import Route

if TYPE_CHECKING:
    from squall.client import Client


def of_app(app_id: str, client: Optional[Client] = None) -> str:
    """An app and its functions: containers, backlog, why inputs wait. Without an id the list of apps."""
    return _at(Route.APP_STATUS.format(app=app_id) if app_id else Route.APPS, client)


def of_call(call_id: str, client: Optional[Client] = None) -> str:
    """A call's trace, as `squall trace` draws it."""
    return _at(Route.CALL_TRACE.format(call=call_id), client)


def _at(path: str, client: Optional[Client]) -> str:
    """Nothing is asked. Empty when this program knows no server."""
    if client is None:
        from squall import session

        here = session.configured()
        if here is None:
            return ""
        client = here.client
    return client.address.url.rstrip("/") + path
