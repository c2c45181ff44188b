"""Addresses of web functions: the two forms of a URL, and which function a request is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from squall.http_api.apps import WebAddress
from squall.spec import FunctionSpec
from squall_contracts.functions import AppRecord
from squall_gateway.policy.web_names import is_platforms, target_of
from squall_gateway.web.names import WebNames

PATH_PREFIX, API_PREFIX = "/web/", "/v1/"
LOCAL_DOMAIN = "localhost"
"""What browsers find without DNS, below any name."""


@dataclass(frozen=True, slots=True)
class Addressed:
    """What a request was addressed to."""

    name: str
    """Host label or custom domain."""
    root_path: str
    """Of the path form: what of the path is not the function's."""


class Addresses:
    """Knows the gateway's own address."""

    def __init__(self, names: WebNames, web_url: str) -> None:
        self._names = names
        self._has_own = bool(web_url)
        """Without, nobody knows which host is the API's, and a custom domain could be it."""
        self.base = web_url.rstrip("/")
        """Replaced when the gateway listens, unless an operator has set it."""

    def listens_at(self, url: str) -> None:
        """The gateway's address, for platforms that have no other."""
        self.base = self.base or url

    def of(self, app: AppRecord, spec: FunctionSpec) -> tuple[WebAddress, ...]:
        """Where the web functions of a function or class answer."""
        found = []
        for method in spec.methods:
            name = self._label(app.web, target_of(spec, method))
            if method.web is None or not name:
                continue
            domains = method.web.custom_domains if self._has_own and app.state == "deployed" else ()
            domain = next(iter(domains), "")
            found.append(
                WebAddress(
                    function=spec.name,
                    method=method.name,
                    url=f"https://{domain}" if domain else self._host_url(name),
                    path_url=f"{self.base}{PATH_PREFIX}{name}",
                    requires_proxy_auth=method.web.requires_proxy_auth,
                )
            )
        return tuple(found)

    def _label(self, web: Mapping[str, str], target: str) -> str:
        return next((name for name, function in web.items() if function == target and "." not in name), "")

    def _host_url(self, name: str) -> str:
        parts = urlsplit(self.base)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.scheme}://{name}.{self.domain}{port}"

    @property
    def secure(self) -> bool:
        """Whether clients come by TLS, which a proxy in front ends."""
        return self.base.startswith("https:")

    @property
    def domain(self) -> str:
        """The platform's own: of its API, and the one that labels are below."""
        host = urlsplit(self.base).hostname or ""
        return LOCAL_DOMAIN if not host or host[0].isdigit() or ":" in host else host

    def addressed(self, host: bytes, path: str) -> Addressed | None:
        """The web function's name in a request; None if it is one for the API."""
        # A host of its own first: below it another's function would get its cookies, and speak in its name.
        if name := self._name_in(host):
            return Addressed(name, "")
        if not path.startswith(PATH_PREFIX):
            return None
        name = path[len(PATH_PREFIX) :].partition("/")[0]
        return Addressed(name.lower(), PATH_PREFIX + name)

    def _name_in(self, host: bytes) -> str:
        """The host label or custom domain; empty for the platform's own host."""
        # Every request of the API comes by here: names of hosts are looked at only where they may be ours.
        if b"--" not in host and not (b"." in host and not host[:1].isdigit()):
            return ""
        text = host.decode("latin-1").lower().rpartition(":")[0] or host.decode("latin-1").lower()
        label, _, domain = text.partition(".")
        if "--" in label and domain in (self.domain, LOCAL_DOMAIN):
            return label
        return text if self._has_own and text in self._names and not is_platforms(text, self.domain) else ""
