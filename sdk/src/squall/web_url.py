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
    """The address of a function or method; class parameters stand in its query,
    unless they are the defaults. None if it is no web function."""
    from squall.class_source import rule_of
    from squall.client import query
    from squall.session import current

    path = query(Route.FUNCTIONS, app=target.app_id, name=target.function, environment=current().environment)
    info = from_wire(FunctionInfo, target.client.json("GET", path))
    for address in info.web:
        if address.method == target.method:
            values = decode_parameters(target.parameters) if target.parameters else {}
            # Those with their defaults are left out: programs write `get_web_url() + "/path"`.
            usual = {spec.name: rule_of(spec).default for spec in info.parameters if spec.has_default}
            said = {name: value for name, value in values.items() if name not in usual or usual[name] != value}
            return best(address) + ("?" + urlencode(said) if said else "")
    return None


def best(address: WebAddress) -> str:
    """The host form if this machine can find the host, else the path form."""
    host = urlsplit(address.url).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return address.path_url
    return address.url
