"""Servers: `@app.server` on a class whose enter hooks start something that listens on a port, and the handle of one.

Owns what such a class may declare. It is a class without methods that answers web requests as `@squall.web_server`
does, but keeps none of them waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional

from squall.blocking import blocking, immediate
from squall.class_source import ClassSource, NamedClass, attributes, undecorated
from squall.cls import Cls, declared_class
from squall.declaration import Declaration, is_number, is_whole
from squall.errors import InvalidError
from squall.function import Function
from squall.markers import BATCHED, CONCURRENT, HOOK, METHOD, WEB, Parameter
from squall.obj import ContainersOrigin, ObjState
from squall.origin import refuse_client
from squall.place import is_local
from squall.unimplemented import FUNCTION_KEYWORDS, missing_classmethods, refuse_keywords

if TYPE_CHECKING:
    from squall.app import App
    from squall.autoscaler import Autoscaler
    from squall.logs import Logs
    from squall.spec import MethodSpec
    from squall.web import WebMark

MOST_AT_ONCE = 1000
"""Requests that one container gets at once if nothing is said."""
LONGEST_S = 86400
UNUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    **FUNCTION_KEYWORDS,
    "scaleup_window": ((None, 0), "Remove it: containers are added as soon as requests need them."),
    "name": ((None,), "Rename the class: a server has the name of its class."),
    "h2_enabled": ((False, None), "Remove it: the proxy in front speaks HTTP/2, the server HTTP/1.1."),
}


class Server(Cls):
    """A server that runs in containers. Send requests to its `get_url()`."""

    def __init__(self, source: ClassSource, web: Optional[WebMark] = None) -> None:
        super().__init__(source)
        self._web = web

    @immediate
    @classmethod
    def from_name(  # type: ignore[override]  # what is looked up here is a server
        cls,
        app_name: str,
        name: str,
        *,
        version: Optional[int] = None,
        environment_name: Optional[str] = None,
        client: None = None,
    ) -> Server:
        """A server of a deployed app. Nothing is asked before its first use."""
        refuse_client(client)
        return cls(NamedClass(app_name, name, version, environment_name))

    def __call__(self, *args: Any, **parameters: Any) -> Any:
        raise InvalidError(
            f"{self._source.label} is a server: it has no instances", fix="Send requests to its `get_url()`."
        )

    @blocking
    def get_url(self) -> Optional[str]:
        """Its address. The same after every deploy, with `-dev` for `squall run`."""
        from squall import web_url

        return web_url.of(self._containers.target())

    @blocking
    def get_web_url(self) -> Optional[str]:
        """The same as `get_url`."""
        from squall import web_url

        return web_url.of(self._containers.target())

    @blocking
    def _experimental_get_flash_urls(self) -> list[str]:
        """The old form of `get_url()`: all its addresses, which are one."""
        url = self.get_url()
        return [] if url is None else [url]

    @property
    def autoscaler(self) -> Autoscaler:
        """`autoscaler.settings()` and `autoscaler.update(...)`."""
        return self._handle.autoscaler

    @property
    def update_autoscaler(self) -> Any:
        """See `Function.update_autoscaler`."""
        return self._handle.update_autoscaler

    @property
    def logs(self) -> Logs:
        """What its containers wrote: `logs.fetch()`, `logs.tail()`, `logs.stream()`."""
        return self._handle.logs

    @property
    def stats(self) -> Any:
        """What it does now. See `Function.stats`."""
        return self._handle.stats

    @property
    def _containers(self) -> ContainersOrigin:
        return ContainersOrigin(ObjState(self._source, {}))

    @property
    def _handle(self) -> Function:
        return Function(self._containers)

    def method_specs(self) -> tuple[MethodSpec, ...]:
        """One without a name, which answers the requests."""
        from squall.spec import MethodSpec, WebSpec

        assert self._web is not None
        return (MethodSpec("", False, False, WebSpec(**self._web._asdict())),)

    def __reduce__(self) -> tuple[Any, ...]:
        return _known_server, (self._source.reference(),)

    def __repr__(self) -> str:
        return f"squall.Server({self._source.label})"


for _name, _missing in missing_classmethods(
    "Server",
    {
        "from_id": "Look it up with `Server.from_name(app, name)`.",
        "info": "`stats()` says what it does now, `get_url()` where it is.",
        "metrics": "Prometheus keeps the past (docs/howto/install.md); `stats()` says what is now.",
        "sessions": "Send `Squall-Session-Id` with requests that shall reach the same container.",
        **dict.fromkeys(("with_options", "with_concurrency", "with_batching"), "Declare it in `@app.server(...)`."),
    },
).items():
    setattr(Server, _name, _missing)


def declare(  # noqa: PLR0913 — the keywords of the decorator
    app: App,
    *,
    port: int = 8000,
    target_concurrency: Optional[float] = None,
    max_concurrency: Optional[int] = None,
    min_containers: Optional[int] = None,
    max_containers: Optional[int] = None,
    startup_timeout: float = 30,
    unauthenticated: bool = False,
    exit_grace_period: float = 0,
    label: Optional[str] = None,
    custom_domains: Optional[list[str]] = None,
    declaration: Optional[Declaration] = None,
    **others: Any,
) -> Callable[[type], Server]:
    """What `App.server` does. `others`: what `@app.cls` takes too, unless `declaration` says it already."""
    own = {name: others.pop(name) for name in list(others) if name in _SHARED}
    from squall import hosted

    hosted.take_out("@app.server", others, {**hosted.WHY_NOTHING, "compute_region": hosted.WHY_NOTHING["region"]})
    refuse_keywords("@app.server", others, UNUSED)
    target, most = _concurrency(target_concurrency, max_concurrency)
    least, highest = _containers(target_concurrency, min_containers, max_containers)
    snapshot = own.pop("enable_memory_snapshot", False)
    complete = (declaration or Declaration(**own, snapshot=snapshot))._replace(
        min_containers=least, max_containers=highest, timeout=LONGEST_S, startup_timeout=startup_timeout,
        max_inputs=most, target_inputs=target,
    )  # fmt: skip
    if not is_number(exit_grace_period) or not 0 <= exit_grace_period <= LONGEST_S:
        raise InvalidError(f"@app.server: exit_grace_period must be 0 to {LONGEST_S} s, got {exit_grace_period!r}")
    from squall.web import server_mark

    mark = server_mark("@app.server", port, startup_timeout, label, custom_domains, not _flag(unauthenticated))
    mark = mark._replace(stateless=True, websocket_grace_s=float(exit_grace_period))

    def decorate(raw: type) -> Server:
        _check_class(raw)
        handle = Server(declared_class(app, raw, complete)._source, mark)
        if is_local():
            complete.check(False)
        app._register(raw.__name__)
        app.registered_classes[raw.__name__] = handle
        return handle

    return decorate


_SHARED = frozenset(
    (
        *("image", "env", "secrets", "gpu", "cpu", "memory", "buffer_containers", "scaledown_window"),
        *("include_source", "nonpreemptible", "enable_memory_snapshot", "use_template", "isolation"),
        *("block_network", "outbound_cidr_allowlist", "volumes", "ephemeral_disk"),
    )
)
"""Keywords that mean what they mean for `@app.cls`."""


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(f"@app.server: unauthenticated must be True or False, got {value!r}")
    return value


def _concurrency(target: Optional[float], most: Optional[int]) -> tuple[int, int]:
    """Requests that the autoscaler aims at for a container, and that one gets at most."""
    if most is not None and (not is_whole(most) or most < 1):
        raise InvalidError(f"@app.server: max_concurrency must be a whole number from 1, got {most!r}")
    if target is not None and (not is_number(target) or not 0 <= target < math.inf):
        raise InvalidError(f"@app.server: target_concurrency must be a number from 0, got {target!r}")
    limit = most or max(MOST_AT_ONCE, math.ceil(target or 0))
    wanted = math.ceil(target) if target else limit
    if wanted > limit:
        raise InvalidError(f"@app.server: target_concurrency ({target}) must not be more than max_concurrency ({most})")
    return wanted, limit


def _containers(target: Optional[float], least: Optional[int], most: Optional[int]) -> tuple[int, Optional[int]]:
    """Without a target nothing is added because of load; with 0 the number is fixed."""
    if target == 0:
        return max(1, least or 0), max(1, least or 0)
    if target is None and most is None:
        return least or 0, max(1, least or 0)
    return least or 0, most


def _check_class(raw: Any) -> None:
    if isinstance(raw, Cls) or not isinstance(raw, type):
        raise InvalidError(f"@app.server decorates a plain class, got {raw!r:.80}", fix="Use it alone, on a class.")
    from squall.declarable import check_not_nested, check_object_name

    check_not_nested(raw)
    if is_local():
        check_object_name(raw.__name__)
    if hasattr(raw, CONCURRENT):
        raise InvalidError(
            f"{raw.__name__}: @squall.concurrent does not go with @app.server",
            fix="Write `@app.server(max_concurrency=...)`.",
        )
    starts = False
    for name, value in attributes(raw).items():
        function = undecorated(value)
        if isinstance(value, Parameter) or any(hasattr(function, mark) for mark in (METHOD, BATCHED, WEB)):
            raise InvalidError(
                f"{raw.__name__}.{name}: a server has neither parameters nor methods that can be called",
                fix="Use @app.cls, or start what answers requests in an @squall.enter() hook.",
            )
        starts = starts or getattr(function, HOOK, None) in ("enter", "enter_snap")
    if not starts:
        raise InvalidError(
            f"{raw.__name__} starts no server", fix="Start it in an @squall.enter() hook, and have it listen on `port`."
        )


def _known_server(reference: tuple[Any, ...]) -> Server:
    """A handle that was a value in another process."""
    from squall.class_source import KnownClass

    return Server(KnownClass(reference))
