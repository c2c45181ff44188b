"""The address of a web function: asked of the gateway, in the form that works on this machine."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Optional
from urllib.parse import urlencode, urlsplit

from squall.http_api.apps import FunctionInfo, WebAddress
from squall.http_api.protocol import decode_parameters
from squall.http_api.routes import Route
from squall.spec import from_wire

if TYPE_CHECKING:
    from squall.invoke import Target


def of(target: Target) -> Optional[str]:
    """The address of a function or method; class parameters stand in its query. None if it is no web function."""
    from squall.client import query
    from squall.session import current

    path = query(Route.FUNCTIONS, app=target.app_id, name=target.function, environment=current().environment)
    info = from_wire(FunctionInfo, target.client.json("GET", path))
    for address in info.web:
        if address.method == target.method:
            values = decode_parameters(target.parameters) if target.parameters else {}
            return best(address) + ("?" + urlencode(values) if values else "")
    return None


def best(address: WebAddress) -> str:
    """The host form if this machine can find the host, else the path form."""
    host = urlsplit(address.url).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return address.path_url
    return address.url
