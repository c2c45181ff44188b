"""Function: what `@app.function` returns and `Function.from_name` looks up; the ways to call it.

Owns which errors come before anything is sent. What happens on the wire is in `invoke` and `mapping`, which are
imported by the first call: a container that only runs a function never loads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, Optional

from squall.blocking import blocking, blocking_iterator, blocking_static, immediate
from squall.declaration import Declaration, is_generator
from squall.errors import ExecutionError, InvalidError
from squall.markers import WEB
from squall.origin import Declared, Hooked, Keyed, Known, Named, Origin, Variant, refuse_client
from squall.unimplemented import NO_CLIENT, missing_classmethods

if TYPE_CHECKING:
    from squall.app import App
    from squall.autoscaler import Autoscaler, AutoscalerSettings, FunctionStats
    from squall.call import FunctionCall
    from squall.function_maps import ForEach, Map, SpawnMap
    from squall.infos import FunctionInfo
    from squall.invoke import Target
    from squall.logs import Logs
    from squall.spec import Options


class Function:
    """A function that runs in containers. Call it with `.remote()`, `.map()`, `.spawn()`; `.local()` runs it here.

    Every method that waits has an `.aio` form: `await f.remote.aio(x)`, `async for y in f.map.aio(xs)`."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        raw = origin.raw
        if raw is not None:
            self.__doc__ = raw.__doc__
            self.__module__ = raw.__module__
            self.__name__ = getattr(raw, "__name__", origin.label)
            self.__qualname__ = getattr(raw, "__qualname__", origin.label)

    @immediate
    @classmethod
    def from_name(
        cls,
        app_name: str,
        name: str,
        *,
        version: Optional[int] = None,
        environment_name: Optional[str] = None,
        client: None = None,
    ) -> Function:
        """A function of a deployed app. Nothing is asked before the first use; a missing one is found then."""
        refuse_client(client)
        if "." in name:
            owner, _, method = name.partition(".")
            raise InvalidError(
                f"{name!r} is a method, not a function",
                fix=f'Use `squall.Cls.from_name("{app_name}", "{owner}")().{method}`.',
            )
        return cls(Named(app_name, name, version, environment_name))

    # --- calls ---

    @blocking_static
    def lookup(app_name: str, name: str, client: None = None, environment_name: Optional[str] = None) -> Function:
        """The old form of `from_name`, which asks at once: it works, and says what it is called now."""
        from squall.old_names import warn_renamed

        warn_renamed("Function.lookup is called Function.from_name now")
        found: Function = Function.from_name(app_name, name, environment_name=environment_name, client=client)
        found._origin.target()
        return found

    @blocking
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in a container and wait for the result. Its exception is raised here, with its traceback."""
        self._refuse_generator("remote", "remote_gen")
        from squall import invoke

        return invoke.remote(self._origin.target(), args, kwargs)

    @blocking_iterator
    def remote_gen(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Call a generator in a container and iterate over what it yields, as it comes."""
        if not self._origin.is_generator():
            raise InvalidError(f"{self._origin.label} is not a generator", fix="Use `.remote()`.")
        from squall import invoke

        return invoke.remote_gen(self._origin.target(), args, kwargs)

    @blocking
    def spawn(self, *args: Any, **kwargs: Any) -> FunctionCall:
        """Start a call that goes on without this program. Its result is kept for 7 days."""
        self._refuse_generator("spawn", "remote_gen")
        from squall import invoke
        from squall.call import FunctionCall

        target = self._origin.target()
        return FunctionCall(invoke.spawn(target, args, kwargs), target.client)

    @property
    def spawn_map(self) -> SpawnMap:
        """`f.spawn_map(xs, ys, ...)`: start a durable background input for each item; returns when all are accepted."""
        from squall.function_maps import SpawnMap

        return SpawnMap(self, keep=False)

    @property
    def experimental_spawn_map(self) -> SpawnMap:
        """As `spawn_map`; returns the `FunctionCall` that has all the inputs."""
        from squall.function_maps import SpawnMap

        return SpawnMap(self, keep=True)

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body here, as if it were not decorated. Gives a coroutine if it is `async def`."""
        return self._origin.local(args, kwargs)

    @property
    def map(self) -> Map:
        """`f.map(xs, ys, ...)`: call it once for each item and iterate over the results, in the order of the inputs."""
        from squall.function_maps import Map

        return Map(self, starred=False)

    @property
    def starmap(self) -> Map:
        """`f.starmap(pairs)`: as `map`, each item is a sequence of arguments."""
        from squall.function_maps import Map

        return Map(self, starred=True)

    @property
    def for_each(self) -> ForEach:
        """`f.for_each(xs, ...)`: as `map`, waits for all and returns nothing."""
        from squall.function_maps import ForEach

        return ForEach(self)

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        label = self._origin.label
        raise TypeError(
            f"{label} cannot be called like a plain function: use `{label}.remote(...)` or `{label}.local(...)`"
        )

    def with_idempotency_key(self, key: str) -> Function:
        """A handle of the same function whose `.remote()` and `.spawn()` make one call, however often they are sent.

        For 24 hours the same key with the same arguments is the same call: also from another program, at the same time,
        or after a restart. The same key with other arguments raises `IdempotencyConflictError`."""
        from squall.http_api.protocol import MAX_IDEMPOTENCY_KEY_CHARS

        if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY_CHARS:
            raise InvalidError(f"an idempotency key is text of 1 to {MAX_IDEMPOTENCY_KEY_CHARS} characters")
        if not (key.isascii() and key.isprintable() and key == key.strip()):
            raise InvalidError(f"idempotency key {key!r} is not printable ASCII", fix="Use an id, or a hash of it.")
        origin = self._origin.inner if isinstance(self._origin, Keyed) else self._origin
        return Function(Keyed(origin, key))

    def with_webhook(self, url: str) -> Function:
        """A handle of the same function whose calls tell their end to `url`, in place of the declared `webhook=`.

        Each input of a map has an end of its own. See docs/howto/webhooks.md for what is sent and how it is signed."""
        from squall.spec import check_webhook

        check_webhook(url)
        origin = self._origin
        if isinstance(origin, Keyed):
            return Function(Keyed(Function(origin.inner).with_webhook(url)._origin, origin.key))
        return Function(Hooked(origin.inner if isinstance(origin, Hooked) else origin, url))

    def with_options(self, *, webhook: Optional[str] = None, **options: Any) -> Function:
        """A handle whose calls run with other settings than declared, in containers of their own.

        `cpu`, `memory`, `gpu`, `env`, `secrets`, `retries`, `timeout`, `max_containers`, `buffer_containers` and
        `scaledown_window`; what is left out, or None, stays as it is. Handles with equal options share containers, also
        across programs. `webhook` is no setting of containers: with it alone it is `with_webhook(...)`."""
        from squall import options as given

        handle = self._variant(given.from_keywords(options)) if options or webhook is None else self
        return handle if webhook is None else handle.with_webhook(webhook)

    def with_concurrency(self, *, max_inputs: int, target_inputs: Optional[int] = None) -> Function:
        """A handle whose calls share containers that run several inputs at once."""
        from squall import options as given

        return self._variant(given.of_concurrency(max_inputs, target_inputs))

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Function:
        """A handle whose calls are collected in batches of another size or waiting time."""
        from squall import options as given

        return self._variant(given.of_batching(max_batch_size, wait_ms))

    def _variant(self, options: Options) -> Function:
        from squall.options import together

        origin = self._origin
        if isinstance(origin, Keyed):
            return Function(Keyed(Function(origin.inner)._variant(options)._origin, origin.key))
        if isinstance(origin, Hooked):
            return Function(Hooked(Function(origin.inner)._variant(options)._origin, origin.url))
        if origin.is_method:
            raise InvalidError(
                f"{origin.label} is a method: all methods share containers",
                fix="Use `.with_options(...)` of the class, then make an instance.",
            )
        if isinstance(origin, Variant):
            return Function(Variant(origin.inner, together(origin.options, options)))
        return Function(Variant(origin, together("", options)))

    # --- its containers ---

    @property
    def autoscaler(self) -> Autoscaler:
        """`f.autoscaler.settings()` and `f.autoscaler.update(...)`."""
        from squall.autoscaler import Autoscaler

        return Autoscaler(self._containers)

    @blocking
    def update_autoscaler(
        self,
        *,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[float] = None,
    ) -> AutoscalerSettings:
        """Change how many containers it may have: at once, and until the next deploy. What is None stays as it is."""
        from squall import autoscaler

        names = ("min_containers", "max_containers", "buffer_containers", "scaledown_window")
        values = (min_containers, max_containers, buffer_containers, scaledown_window)
        return autoscaler.update(self._containers(), dict(zip(names, values)))

    @blocking
    def get_current_stats(self) -> FunctionStats:
        """How much waits and runs at the moment, and in how many containers."""
        from squall import autoscaler

        return autoscaler.stats(self._origin.target())  # those of a method are its instance's

    def _containers(self) -> Target:
        if self._origin.is_method:
            raise InvalidError(
                f"{self._origin.label} is a method: all methods share containers",
                fix="Use `.update_autoscaler(...)` of the instance.",
            )
        return self._origin.target()

    # --- the handle itself ---

    @property
    def is_hydrated(self) -> bool:
        """Whether it has an id: its app runs, or it was looked up. Asks nothing."""
        return self._origin.is_known()

    @blocking
    def hydrate(self, client: None = None) -> Function:
        """Look it up now rather than at the first use."""
        refuse_client(client)
        self._origin.target()
        return self

    @property
    def object_id(self) -> str:
        """Id of the function's version. Raises `ExecutionError` before the handle was used or hydrated."""
        found = self._origin.known_id()
        if not found:
            raise ExecutionError(f"{self._origin.label} has no id yet", fix="Call `.hydrate()` first, or run the app.")
        return found

    @property
    def app(self) -> App:
        """The app that declares it."""
        origin = self._origin
        while isinstance(origin, (Keyed, Variant, Hooked)):
            origin = origin.inner
        if not isinstance(origin, Declared):
            raise ExecutionError(f"the app of {origin.label} is not declared here", fix="Import its file.")
        return origin.app

    @property
    def logs(self) -> Logs:
        """What its containers wrote: `logs.fetch()`, `logs.tail()`, `logs.stream()`."""
        from squall.logs import Logs, LogScope

        def scope() -> LogScope:
            target = self._origin.target()
            return LogScope(target.client, target.app_id, target.function)

        return Logs(scope)

    @blocking
    def info(self) -> FunctionInfo:
        """What the server knows of it: its version, and what it declares."""
        from squall import infos

        return infos.function_info(self._origin.target())

    @blocking
    def stats(self, since: Any = None, until: Any = None) -> FunctionStats:
        """What it does now; as `get_current_stats`."""
        from squall import autoscaler, infos

        infos.refuse_window({"since": since, "until": until})
        return autoscaler.stats(self._origin.target())

    @property
    def is_generator(self) -> bool:
        """Whether it yields."""
        return self._origin.is_generator()

    def get_raw_f(self) -> Callable[..., Any]:
        """The undecorated function."""
        if self._origin.raw is None:
            raise ExecutionError(f"the code of {self._origin.label} is not here", fix="Import its file.")
        return self._origin.raw

    def _squall_raw(self) -> Callable[..., Any]:
        """The undecorated function, for the runner."""
        return self.get_raw_f()

    @blocking
    def get_web_url(self) -> Optional[str]:
        """The address of a web function; None for others. The same after every deploy, with `-dev` for `squall run`."""
        from squall import web_url

        return web_url.of(self._origin.target())

    @immediate
    def get_dashboard_url(self) -> str:
        """Where the server shows its app, as JSON to who sends a token. Empty when no server is known.

        The list of apps while it belongs to none that runs."""
        from squall import pages
        from squall.errors import SquallError

        try:
            return pages.of_app(self._origin.target().app_id)
        except (SquallError, OSError):
            return pages.of_app("")

    @property
    def web_url(self) -> Optional[str]:
        """The old form of `get_web_url()`: it works, and says what it is called now."""
        from squall.old_names import warn_renamed

        warn_renamed("`.web_url` is called `.get_web_url()` now")
        return self.get_web_url()

    def _refuse_generator(self, used: str, instead: str) -> None:
        if getattr(self._origin.raw, WEB, None) is not None:
            raise InvalidError(
                f"{self._origin.label} is a web function: .{used}() cannot call it",
                fix="Send a request to its `get_web_url()`, or use `.local()`.",
            )
        if self._origin.is_generator():
            raise InvalidError(
                f"{self._origin.label} is a generator: .{used}() cannot return its items", fix=f"Use `.{instead}()`."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self._origin, Keyed):
            return _keyed, (Function(self._origin.inner), self._origin.key)
        if isinstance(self._origin, Hooked):
            return _hooked, (Function(self._origin.inner), self._origin.url)
        if isinstance(self._origin, Variant):
            return _variant, (Function(self._origin.inner), self._origin.options)
        return self._origin.reduce() or (_known, self._reference())

    def _reference(self) -> tuple[str, str, str, bool]:
        target = self._origin.target()
        return target.app_id, target.function, target.function_id, self.is_generator

    def __repr__(self) -> str:
        return f"squall.Function({self._origin.label})"


for _name, _missing in missing_classmethods(
    "Function",
    {
        "from_id": "Look it up with `Function.from_name(app, name)`.",
        "client": NO_CLIENT,
        "metrics": "Prometheus collects them from the services (docs/howto/install.md).",
    },
).items():
    setattr(Function, _name, _missing)


def _known(app_id: str, name: str, function_id: str, generator: bool) -> Function:
    """A handle that was a value in another process."""
    return Function(Known(app_id, name, function_id, generator))


def _keyed(function: Function, key: str) -> Function:
    """A keyed handle that was a value in another process."""
    return function.with_idempotency_key(key)


def _hooked(function: Function, url: str) -> Function:
    """A handle with a webhook that was a value in another process."""
    return function.with_webhook(url)


def _variant(function: Function, options: str) -> Function:
    """A handle with options that was a value in another process."""
    return Function(Variant(function._origin, options))


def declared(
    app: App, raw: Callable[..., Any], name: str, declaration: Declaration, generator: Optional[bool]
) -> Function:
    """The handle of a decorated function."""
    return Function(Declared(app, raw, name, declaration, is_generator(raw) if generator is None else generator))
