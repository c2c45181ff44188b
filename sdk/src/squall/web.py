"""Web decorators: they note on the raw function that its containers answer HTTP requests, and how.

Owns what is said about a web function and the checks of it. The addresses are the gateway's; how a request reaches the
function is in `squall_runner.web`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from squall.declaration import is_async, is_generator, is_number, is_whole, parameter_names
from squall.errors import InvalidError
from squall.markers import BATCHED, METHOD, WEB, check_markable, need_parentheses

if TYPE_CHECKING:
    from squall.declaration import Declaration
    from squall.spec import WebSpec

FASTAPI, ASGI, WSGI, SERVER = "fastapi", "asgi", "wsgi", "server"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DOMAIN = re.compile(r"(?=.{4,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]")


class WebMark(NamedTuple):
    """What a web decorator said; the fields are those of `squall.spec.WebSpec`."""

    kind: str
    method: str = "GET"
    docs: bool = False
    label: str = ""
    custom_domains: tuple[str, ...] = ()
    requires_proxy_auth: bool = False
    port: int = 0
    startup_timeout_s: float = 5.0
    stateless: bool = False
    websocket_grace_s: float = 0.0


def fastapi_endpoint(
    _without_parentheses: None = None,
    *,
    method: str = "GET",
    label: Optional[str] = None,
    custom_domains: Optional[Sequence[str]] = None,
    docs: bool = False,
    requires_proxy_auth: bool = False,
) -> Callable[[Any], Any]:
    """Make the function the one route of a FastAPI app: its parameters are read from query and body by annotation.

    The image needs FastAPI. Browsers of any origin may call it. With `docs` there is a page at `/docs`."""
    need_parentheses("fastapi_endpoint", _without_parentheses)
    if method not in METHODS:
        raise InvalidError(f"@squall.fastapi_endpoint: method {method!r} is not one of {', '.join(METHODS)}")
    mark = _mark(FASTAPI, "@squall.fastapi_endpoint", label, custom_domains, requires_proxy_auth)
    return _marker("fastapi_endpoint", mark._replace(method=method, docs=bool(docs)))


def asgi_app(
    _without_parentheses: None = None,
    *,
    label: Optional[str] = None,
    custom_domains: Optional[Sequence[str]] = None,
    requires_proxy_auth: bool = False,
) -> Callable[[Any], Any]:
    """The function makes an ASGI app (FastAPI, Starlette, Django ...), which answers all requests below its address.

    It is called once in each container, without arguments."""
    need_parentheses("asgi_app", _without_parentheses)
    return _marker("asgi_app", _mark(ASGI, "@squall.asgi_app", label, custom_domains, requires_proxy_auth))


def wsgi_app(
    _without_parentheses: None = None,
    *,
    label: Optional[str] = None,
    custom_domains: Optional[Sequence[str]] = None,
    requires_proxy_auth: bool = False,
) -> Callable[[Any], Any]:
    """The function makes a WSGI app (Flask, Django ...); requests run in threads."""
    need_parentheses("wsgi_app", _without_parentheses)
    return _marker("wsgi_app", _mark(WSGI, "@squall.wsgi_app", label, custom_domains, requires_proxy_auth))


def web_server(
    port: int,
    *,
    startup_timeout: float = 5.0,
    label: Optional[str] = None,
    custom_domains: Optional[Sequence[str]] = None,
    requires_proxy_auth: bool = False,
) -> Callable[[Any], Any]:
    """The function starts an HTTP server on `port`, in whatever language, and returns. Requests are passed on to it.

    It has `startup_timeout` seconds to listen."""
    mark = server_mark("@squall.web_server", port, startup_timeout, label, custom_domains, requires_proxy_auth)
    return _marker("web_server", mark)


def server_mark(
    where: str,
    port: int,
    startup_timeout: float,
    label: Optional[str],
    domains: Optional[Sequence[str]],
    requires_proxy_auth: bool,
) -> WebMark:
    """What is said about a server on a port. Raises `InvalidError`."""
    if not is_whole(port) or not 1 <= port <= 65535:
        raise InvalidError(f"{where}: port must be a whole number from 1 to 65535, got {port!r}")
    if not is_number(startup_timeout) or not 0 < startup_timeout <= 86400:
        raise InvalidError(f"{where}: startup_timeout must be 0 to 86400 seconds, got {startup_timeout!r}")
    mark = _mark(SERVER, where, label, domains, requires_proxy_auth)
    return mark._replace(port=port, startup_timeout_s=float(startup_timeout))


def web_endpoint(_without_parentheses: None = None, **others: Any) -> Callable[[Any], Any]:
    """The old name of `fastapi_endpoint`: it works, and says what it is called now."""
    need_parentheses("web_endpoint", _without_parentheses)
    from squall.old_names import warn_renamed

    warn_renamed("@squall.web_endpoint is called @squall.fastapi_endpoint now", declaring=True)
    return fastapi_endpoint(**others)


def mark_of(raw: Any) -> Optional[WebMark]:
    """What a web decorator said about a function; None if none did."""
    return getattr(raw, WEB, None)


def spec_of(raw: Any) -> Optional[WebSpec]:
    """The same as part of a spec."""
    mark = mark_of(raw)
    if mark is None:
        return None
    from squall.spec import WebSpec

    return WebSpec(**mark._asdict())


def check(raw: Any, declaration: Declaration) -> None:
    """Raise `InvalidError` for what a web function cannot be."""
    if mark_of(raw) is None:
        return
    if declaration.retries:
        raise InvalidError(
            f"{raw.__qualname__}: retries= is not possible for web functions",
            fix="Remove retries=; who sends a request decides whether to repeat it.",
        )


def _mark(
    kind: str, where: str, label: Optional[str], domains: Optional[Sequence[str]], requires_proxy_auth: bool
) -> WebMark:
    if label is not None and not LABEL.fullmatch(str(label)):
        raise InvalidError(
            f"{where}: label {label!r} cannot be part of a host name",
            fix="Use 1 to 63 lower-case letters, digits and dashes.",
        )
    if isinstance(domains, str):
        raise InvalidError(f"{where}: custom_domains must be a list, got {domains!r}")
    for domain in domains or ():
        if not DOMAIN.fullmatch(str(domain)):
            raise InvalidError(f"{where}: custom domain {domain!r} is not a host name in lower case")
    if not isinstance(requires_proxy_auth, bool):
        raise InvalidError(f"{where}: requires_proxy_auth must be True or False, got {requires_proxy_auth!r}")
    return WebMark(
        kind, label=label or "", custom_domains=tuple(domains or ()), requires_proxy_auth=requires_proxy_auth
    )


def _marker(decorator: str, mark: WebMark) -> Callable[[Any], Any]:
    def decorate(raw: Any) -> Any:
        check_markable(decorator, raw)
        _check_body(decorator, raw, mark)
        setattr(raw, WEB, mark)
        return raw

    return decorate


def _check_body(decorator: str, raw: Any, mark: WebMark) -> None:
    name = getattr(raw, "__qualname__", decorator)
    if isinstance(raw, type):
        raise InvalidError(f"@squall.{decorator} decorates functions, {name} is a class", fix="Mark its method.")
    if mark_of(raw) is not None:
        raise InvalidError(f"{name} has two web decorators", fix="Make two functions.")
    if hasattr(raw, BATCHED) or hasattr(raw, METHOD):
        raise InvalidError(f"{name} is a web function: @squall.method and @squall.batched do not go with that")
    if is_generator(raw):
        raise InvalidError(
            f"{name} is a generator: a web function cannot be one",
            fix="Return a StreamingResponse of a generator defined inside.",
        )
    if mark.kind in (ASGI, WSGI, SERVER):
        if is_async(raw) and mark.kind != SERVER:
            raise InvalidError(f"{name} makes an app: it must be a plain `def`, not `async def`")
        defaults = len(getattr(raw, "__defaults__", None) or ())
        if len(parameter_names(raw)) > defaults:
            raise InvalidError(f"{name} is called without arguments: remove its parameters")
