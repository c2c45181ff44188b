"""App: the functions of a program under one name; running them for a while, or deploying them.

Owns what is declared. What an app is on the server is in `app_on_server`, how it gets there in `publish`, what goes on
while it runs in `running`.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from squall.app_on_server import AppOnServer
from squall.app_run import AppRun
from squall.blocking import blocking, blocking_static
from squall.class_source import attributes, undecorated
from squall.cls import Cls, batch_of, declared_class
from squall.declarable import check_app_name, check_function, check_not_nested, check_object_name
from squall.declaration import Cpu, Declaration, Gpu, Memory
from squall.errors import ExecutionError, InvalidError, UnimplementedArgument
from squall.function import Function, declared
from squall.local_entrypoint import LocalEntrypoint
from squall.markers import BATCHED, CONCURRENT, WEB
from squall.old_names import with_old_names
from squall.origin import refuse_client
from squall.place import is_local
from squall.unimplemented import FUNCTION_KEYWORDS, SANDBOX_INSTEAD, missing_classmethods, refuse_keywords

if TYPE_CHECKING:
    from squall.bucket import CloudBucketMount
    from squall.image import Image
    from squall.retries import Retries
    from squall.running import Running
    from squall.schedules import Schedule
    from squall.secret import Secret
    from squall.server import Server
    from squall.volume import Volume

_names: weakref.WeakValueDictionary[str, App] = weakref.WeakValueDictionary()


class App(AppOnServer):
    """The functions and classes of a program. Run them for the time of a `with` block, or deploy them under a name."""

    def __init__(
        self,
        name: Optional[str] = None,
        *,
        tags: Optional[dict[str, str]] = None,
        image: Optional[Image] = None,
        secrets: Sequence[Secret] = (),
        include_source: bool = True,
        volumes: Optional[Mapping[Any, Any]] = None,
        **others: Any,
    ) -> None:
        refuse_keywords("App()", others, {})
        if name is not None and not isinstance(name, str):
            raise InvalidError(f"the app's name must be text, got {name!r}")
        super().__init__(name, tags)
        self._image = image
        self._secrets = Declaration(secrets=secrets).check_secrets("App()")
        self._volumes = Declaration(volumes=volumes).mounted()
        self._include_source = include_source
        self.registered_functions: dict[str, Function] = {}
        self.registered_classes: dict[str, Cls] = {}
        self.registered_entrypoints: dict[str, LocalEntrypoint] = {}
        self._running: Optional[Running] = None
        _warn_of_namesake(self, name)

    @property
    def image(self) -> Optional[Image]:
        """Image of functions that name none."""
        return self._image

    @image.setter
    def image(self, image: Optional[Image]) -> None:
        from squall.old_names import warn_renamed

        if is_local():
            warn_renamed("`app.image = image` is written `App(image=image)` now")
        self._image = image

    @property
    def registered_web_endpoints(self) -> list[str]:
        """Names of what answers web requests: functions, and methods as `Class.method`."""
        functions = [name for name, each in self.registered_functions.items() if hasattr(each.get_raw_f(), WEB)]
        methods = [
            f"{name}.{method.name}"
            for name, handle in self.registered_classes.items()
            for method in handle.method_specs()
            if method.web is not None
        ]
        return functions + methods

    @property
    def include_source(self) -> bool:
        """Whether functions that do not say bring their source file."""
        return self._include_source

    # --- declarations ---

    def function(
        self,
        _without_parentheses: None = None,
        *,
        image: Optional[Image] = None,
        env: Optional[dict[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        gpu: Gpu = None,
        cpu: Cpu = None,
        memory: Memory = None,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        single_use_containers: bool = False,
        retries: Union[int, Retries, None] = None,
        timeout: float = 300,
        startup_timeout: Optional[float] = None,
        schedule: Optional[Schedule] = None,
        name: Optional[str] = None,
        is_generator: Optional[bool] = None,
        serialized: bool = False,
        include_source: Optional[bool] = None,
        nonpreemptible: Optional[bool] = None,
        enable_memory_snapshot: Optional[bool] = False,
        use_template: Optional[bool] = None,
        isolation: Optional[str] = None,
        block_network: bool = False,
        outbound_cidr_allowlist: Optional[Sequence[str]] = None,
        webhook: Optional[str] = None,
        volumes: Optional[Mapping[Any, Any]] = None,
        ephemeral_disk: Optional[int] = None,
        **others: Any,
    ) -> Callable[[Callable[..., Any]], Function]:
        """Declare a function of the app. See the reference for every parameter."""
        if _without_parentheses is not None:
            raise TypeError("write `@app.function()`: the decorator needs its parentheses")
        declaration = Declaration(
            image, env, gpu, cpu, memory, min_containers, max_containers, buffer_containers, scaledown_window,
            retries, timeout, startup_timeout, include_source, nonpreemptible,
            serialized=serialized, single_use=single_use_containers,
            snapshot=enable_memory_snapshot, use_template=use_template, secrets=self._and_own(secrets),
            schedule=schedule,
            isolation=isolation, block_network=block_network, outbound_cidr_allowlist=outbound_cidr_allowlist,
            webhook=webhook,
            volumes=self._and_own_volumes(volumes), ephemeral_disk=ephemeral_disk,
        )  # fmt: skip
        declaration = _with_others("@app.function", declaration, others)

        def decorate(raw: Callable[..., Any]) -> Function:
            check_function(raw, serialized)
            own_name = name or raw.__name__
            complete = _with_concurrency(declaration, raw)
            function = declared(self, raw, own_name, complete, is_generator)
            if is_local():
                check_object_name(own_name)
                complete.check(function.is_generator)
                if schedule is not None:
                    from squall.schedules import check as check_schedule

                    check_schedule(schedule, own_name, raw)
                _check_web([raw], complete)
            self._register(own_name)
            self.registered_functions[own_name] = function
            return function

        return decorate

    def cls(
        self,
        _without_parentheses: None = None,
        *,
        image: Optional[Image] = None,
        env: Optional[dict[str, Optional[str]]] = None,
        secrets: Optional[Sequence[Secret]] = None,
        gpu: Gpu = None,
        cpu: Cpu = None,
        memory: Memory = None,
        min_containers: Optional[int] = None,
        max_containers: Optional[int] = None,
        buffer_containers: Optional[int] = None,
        scaledown_window: Optional[int] = None,
        single_use_containers: bool = False,
        retries: Union[int, Retries, None] = None,
        timeout: float = 300,
        startup_timeout: Optional[float] = None,
        include_source: Optional[bool] = None,
        nonpreemptible: Optional[bool] = None,
        enable_memory_snapshot: Optional[bool] = False,
        use_template: Optional[bool] = None,
        isolation: Optional[str] = None,
        block_network: bool = False,
        outbound_cidr_allowlist: Optional[Sequence[str]] = None,
        webhook: Optional[str] = None,
        volumes: Optional[Mapping[Any, Any]] = None,
        ephemeral_disk: Optional[int] = None,
        **others: Any,
    ) -> Callable[[type], Cls]:
        """Declare a class of the app: its methods share containers, `@squall.enter` prepares them."""
        if _without_parentheses is not None:
            raise TypeError("write `@app.cls()`: the decorator needs its parentheses")
        declaration = Declaration(
            image, env, gpu, cpu, memory, min_containers, max_containers, buffer_containers, scaledown_window,
            retries, timeout, startup_timeout, include_source, nonpreemptible, single_use=single_use_containers,
            snapshot=enable_memory_snapshot, use_template=use_template, secrets=self._and_own(secrets),
            isolation=isolation, block_network=block_network, outbound_cidr_allowlist=outbound_cidr_allowlist,
            webhook=webhook,
            volumes=self._and_own_volumes(volumes), ephemeral_disk=ephemeral_disk,
        )  # fmt: skip
        declaration = _with_others("@app.cls", declaration, others)

        def decorate(raw: type) -> Cls:
            if isinstance(raw, Cls):
                raise InvalidError("the class is decorated with @app.cls twice", fix="Remove one of them.")
            if not isinstance(raw, type):
                raise TypeError(
                    f"@app.cls decorates classes, got {type(raw).__name__}; use @app.function for functions"
                )
            check_not_nested(raw)
            if hasattr(raw, "__squall_served__"):
                from squall.served import server_of

                return server_of(self, raw, declaration)
            complete = _with_concurrency(declaration, raw)._replace(batch=batch_of(raw))
            handle = declared_class(self, raw, complete)
            if is_local():
                check_object_name(raw.__name__)
                complete.check(handle.has_generators)
                _check_web(attributes(raw).values(), complete)
            self._register(raw.__name__)
            self.registered_classes[raw.__name__] = handle
            return handle

        return decorate

    def server(self, _without_parentheses: None = None, **keywords: Any) -> Callable[[type], Server]:
        """Declare a server: a class with a hook that starts what listens on `port` (8000). See `squall.server`."""
        if _without_parentheses is not None:
            raise TypeError("write `@app.server()`: the decorator needs its parentheses")
        from squall.server import declare

        secrets, volumes = keywords.pop("secrets", None), keywords.pop("volumes", None)
        return declare(self, **keywords, secrets=self._and_own(secrets), volumes=self._and_own_volumes(volumes))

    def _experimental_server(self, **keywords: Any) -> Callable[[type], Server]:
        """The old name of `server`. It answers everybody."""
        from squall.served import experimental_server

        return experimental_server(self, **keywords)

    def _and_own(self, secrets: Optional[Sequence[Secret]]) -> tuple[Secret, ...]:
        """The app's secrets, then a function's own: the later one wins."""
        return (*self._secrets, *Declaration(secrets=secrets or ()).check_secrets("the function"))

    def _and_own_volumes(self, volumes: Optional[Mapping[Any, Any]]) -> dict[str, Union[Volume, CloudBucketMount]]:
        """The app's volumes and a function's own: at the same place its own."""
        return {**self._volumes, **Declaration(volumes=volumes).mounted()}

    def local_entrypoint(
        self, _without_parentheses: None = None, *, name: Optional[str] = None
    ) -> Callable[[Callable[..., Any]], LocalEntrypoint]:
        """Declare the function that `squall run` runs here, while the app runs."""
        if callable(_without_parentheses):
            raise InvalidError("write `@app.local_entrypoint()`: the decorator needs its parentheses")
        own_name = name or _without_parentheses

        def decorate(raw: Callable[..., Any]) -> LocalEntrypoint:
            entrypoint = LocalEntrypoint(self, raw, own_name or raw.__name__)
            if entrypoint.name in self.registered_entrypoints:
                raise InvalidError(f"the app has two local entrypoints named {entrypoint.name}")
            self.registered_entrypoints[entrypoint.name] = entrypoint
            return entrypoint

        return decorate

    def include(self, other_app: App, inherit_tags: bool = True) -> App:
        """Take in the functions and classes of another app: they run and are deployed with this one. Gives this app.

        There is one namespace: of two functions with one name the later one counts, with a warning."""
        if not isinstance(other_app, App):
            raise InvalidError(f"include() takes a squall.App, got {type(other_app).__name__}")
        if other_app is self or self in other_app._included_in:
            raise InvalidError("an app cannot include itself", fix="Include it in one other app.")
        for name, function in other_app.registered_functions.items():
            self._register(name, function)
            self.registered_functions[name] = function
        for name, handle in other_app.registered_classes.items():
            self._register(name, handle)
            self.registered_classes[name] = handle
        other_app._included_in.append(self)
        if inherit_tags:
            self.tags = {**other_app.tags, **self.tags}
        return self

    def _register(self, name: str, handle: Union[Function, Cls, None] = None) -> None:
        known = self.registered_functions.get(name) or self.registered_classes.get(name)
        if known is not None and known is not handle:
            warnings.warn(f"the app has two functions named {name!r}: the later one counts", UserWarning, stacklevel=4)
            self.registered_functions.pop(name, None)
            self.registered_classes.pop(name, None)

    # --- life ---

    def run(
        self,
        *,
        name: Optional[str] = None,
        client: None = None,
        detach: bool = False,
        interactive: bool = False,
        environment_name: Optional[str] = None,
    ) -> AppRun:
        """Run the app for the time of a `with` (or `async with`) block.

        `detach`: it goes on when this program ends. With no server configured everything starts here for that time."""
        _refuse(client, interactive)
        return AppRun(self, name or self._name, detach, environment_name)

    @blocking
    def deploy(
        self,
        *,
        name: Optional[str] = None,
        environment_name: Optional[str] = None,
        tag: str = "",
        client: None = None,
        strategy: str = "rolling",
    ) -> App:
        """Deploy the app under its name; accepted calls end on the version that they were made to.

        `tag`: for its history. `strategy`: "rolling" lets earlier containers finish what they run; "recreate" ends them
        at once, and what ran in them starts again, in a new container of its own version."""
        _refuse(client, False)
        if tag:
            from squall.ids import check_tag

            check_tag(tag)
        if strategy not in ("rolling", "recreate"):
            raise InvalidError(f'strategy must be "rolling" or "recreate", got {strategy!r}')
        own_name = name or self._name
        if not own_name:
            raise InvalidError(
                "an app needs a name to be deployed", fix='Write `squall.App("name")` or `deploy(name=...)`.'
            )
        check_app_name(own_name)
        if not is_local():
            raise ExecutionError(
                "an app cannot be deployed from inside a container", fix="Deploy it from your machine."
            )
        from squall import output, publish, session

        here = session.current()
        release = publish.Release(tag=tag, strategy=strategy)
        place = environment_name or here.environment
        published = publish.publish(self, here, "deployed", own_name, place, release)
        self._state = published.state
        output.current().app_deployed(published.state.app_id, own_name, published.state.version, published.unchanged)
        return self

    @blocking_static
    def lookup(
        name: str,
        *,
        client: None = None,
        environment_name: Optional[str] = None,
        create_if_missing: bool = False,
    ) -> App:
        """The deployed app of that name (or id). Raises `NotFoundError`, or makes it, without functions."""
        refuse_client(client)
        if not name.startswith("ap-"):
            check_app_name(name)
        elif create_if_missing:
            raise InvalidError(f"{name} is an id: an app is made under a name", fix="Give a name.")
        from squall import publish, session

        return publish.lookup(name, session.current(), environment_name, create_if_missing)

    def __repr__(self) -> str:
        return f"squall.App({self._name!r})"


for _name, _missing in missing_classmethods(
    "App",
    {
        "sandboxes": SANDBOX_INSTEAD,
    },
).items():
    setattr(App, _name, _missing)


# --- checks of declarations ------------------------------------------------------------------------------------------


def _with_others(where: str, declaration: Declaration, others: dict[str, Any]) -> Declaration:
    """What keywords without a parameter of their own say. Raises for those that are not served."""
    if not others:
        return declaration
    from squall import hosted

    declaration = with_old_names(where, declaration, others)
    hosted.take_out(where, others)
    refuse_keywords(where, others, FUNCTION_KEYWORDS)
    return declaration


def _with_concurrency(declaration: Declaration, raw: Any) -> Declaration:
    own = vars(raw) if hasattr(raw, "__dict__") else {}
    if own.get(CONCURRENT):
        max_inputs, target_inputs = own[CONCURRENT]
        declaration = declaration._replace(max_inputs=max_inputs, target_inputs=target_inputs)
    return declaration._replace(batch=own[BATCHED]) if own.get(BATCHED) else declaration


def _check_web(functions: Iterable[Any], declaration: Declaration) -> None:
    marked = [raw for raw in map(undecorated, functions) if hasattr(raw, WEB)]
    if marked:
        from squall import web

        for raw in marked:
            web.check(raw, declaration)


def _warn_of_namesake(app: App, name: Optional[str]) -> None:
    if name is None or not is_local():
        return
    key = f"{sys._getframe(2).f_globals.get('__name__')}/{name}"
    if key in _names:
        warnings.warn(f"this file has two apps named {name!r}", UserWarning, stacklevel=3)
    _names[key] = app


def _refuse(client: Any, interactive: bool) -> None:
    refuse_client(client)
    if interactive:
        raise UnimplementedArgument("squall does not have `interactive=` yet", fix="Use `.local()` for debugging.")
