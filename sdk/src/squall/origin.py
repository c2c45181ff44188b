"""Where a handle comes from: declared here, looked up by name, or received as a value. Finds what is called.

Owns the way from a handle to its target (server, app, function, version). Imports the client when a call is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

from squall.declaration import Declaration, parameter_names
from squall.errors import ExecutionError, InvalidError, UnimplementedArgument
from squall.place import is_local

if TYPE_CHECKING:
    from squall.app import App
    from squall.http_api.apps import FunctionInfo
    from squall.invoke import Target


class Origin:
    """Where a handle comes from: how its target is found. One subclass for each way to get a handle."""

    label = ""
    """The name in messages."""
    raw: Optional[Callable[..., Any]] = None
    """The user's own function, if it is here."""
    is_method = False

    def target(self) -> Target:
        """What is called, and on which server. May ask the server."""
        raise NotImplementedError

    def is_generator(self) -> bool:
        """Whether it yields. May ask the server."""
        raise NotImplementedError

    def reduce(self) -> Optional[tuple[Any, ...]]:
        """How the handle is pickled, where its target alone is not enough."""
        return None

    def known_id(self) -> Optional[str]:
        """Id of the version that is called, as far as that is known without asking."""
        return None

    def is_known(self) -> bool:
        """Whether the server knows it, as far as that is known without asking."""
        return bool(self.known_id())

    def local(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run the body here."""
        if self.raw is None:
            raise ExecutionError(
                f"{self.label} was looked up by name: its code is not here", fix="Use `.remote()`, or import its file."
            )
        return self.raw(*args, **kwargs)


class Declared(Origin):
    """Declared by a decorator in a program that is loaded here."""

    def __init__(self, app: App, raw: Callable[..., Any], name: str, declaration: Declaration, generator: bool) -> None:
        self.app, self.raw, self.label, self.declaration = app, raw, name, declaration
        self._generator = generator

    def target(self) -> Target:
        return target_in(self.app, self.label, lambda: parameter_names(self.raw))

    def is_generator(self) -> bool:
        return self._generator

    def known_id(self) -> Optional[str]:
        return self.app.function_id(self.label)

    def is_known(self) -> bool:
        return not is_local() or super().is_known()  # a container runs code that was published


class Named(Origin):
    """Looked up: a function of a deployed app."""

    def __init__(self, app: str, name: str, version: Optional[int], environment: Optional[str]) -> None:
        self.label = f"{app}/{name}"
        self._lookup = Lookup(app, name, version, environment)

    def target(self) -> Target:
        return self._lookup.target()

    def is_generator(self) -> bool:
        info = self._lookup.info()
        if info.is_class:
            raise InvalidError(f"{self.label} is a class", fix="Look it up with `squall.Cls.from_name`.")
        return info.methods[0].is_generator if info.methods else False

    def known_id(self) -> Optional[str]:
        found = self._lookup.found
        return found.function_id if found else None


class Known(Origin):
    """Came as a value from another process."""

    def __init__(self, app_id: str, name: str, function_id: str, generator: bool) -> None:
        self.label, self._app_id, self._function_id, self._generator = name, app_id, function_id, generator

    def target(self) -> Target:
        return target_by_id(self._app_id, self.label, self._function_id)

    def is_generator(self) -> bool:
        return self._generator

    def known_id(self) -> Optional[str]:
        return self._function_id


class Neighbour(Origin):
    """A function of the app that this container belongs to, as one that travelled by value knows it."""

    def __init__(self, name: str, generator: bool) -> None:
        self.label, self._generator = name, generator

    def target(self) -> Target:
        return target_of_container(self.label, no_names)

    def is_generator(self) -> bool:
        return self._generator


def no_names() -> Sequence[str]:
    """For functions whose signature is not known here."""
    return ()


class Derived(Origin):
    """Another handle of the same function, whose calls go to a target that differs a little."""

    def __init__(self, inner: Origin) -> None:
        self.inner = inner
        self.label, self.raw = inner.label, inner.raw

    def is_generator(self) -> bool:
        return self.inner.is_generator()

    def known_id(self) -> Optional[str]:
        return self.inner.known_id()

    def is_known(self) -> bool:
        return self.inner.is_known()

    def local(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return self.inner.local(args, kwargs)


class Variant(Derived):
    """Its calls run with other options, in a pool of their own."""

    def __init__(self, inner: Origin, options: str) -> None:
        super().__init__(inner)
        self.options = options

    def target(self) -> Target:
        return self.inner.target()._replace(options=self.options)


class Keyed(Derived):
    """Its calls have an idempotency key."""

    def __init__(self, inner: Origin, key: str) -> None:
        super().__init__(inner)
        self.key = key

    def target(self) -> Target:
        return self.inner.target()._replace(key=self.key)


class Hooked(Derived):
    """The ends of its calls are told to a URL of their own."""

    def __init__(self, inner: Origin, url: str) -> None:
        super().__init__(inner)
        self.url = url

    def target(self) -> Target:
        return self.inner.target()._replace(webhook=self.url)


# --- targets ---------------------------------------------------------------------------------------------------------


def target_in(app: App, name: str, names: Callable[[], Sequence[str]]) -> Target:
    """A function of an app that runs, or of the app that this container belongs to."""
    from squall import invoke

    state = app.state
    if state is not None:
        if name not in state.functions:
            raise ExecutionError(
                f"{name} was declared after its app started",
                fix="Declare every function before `app.run()` or `app.deploy()`.",
            )
        here = state.session
        return invoke.Target(here.client, here.recorder, state.app_id, name, script=state.script, names=names)
    return target_of_container(name, names)


def target_of_container(name: str, names: Callable[[], Sequence[str]]) -> Target:
    """A function of the app that this container belongs to."""
    from squall import invoke, session

    app_id = session.app_of_container()
    if app_id is None:
        raise ExecutionError(
            f"{name} cannot be called: its app is not running",
            fix="Use `with app.run():` or `squall run`; or deploy it and look it up with `from_name`.",
        )
    here = session.current()
    return invoke.Target(here.client, here.recorder, app_id, name, names=names)


def target_by_id(app_id: str, name: str, function_id: str) -> Target:
    """A function whose app is known by id."""
    from squall import invoke, session

    here = session.current()
    return invoke.Target(here.client, here.recorder, app_id, name, function_id)


class Lookup:
    """The server's answer to a name, asked once."""

    def __init__(self, app: str, name: str, version: Optional[int], environment: Optional[str]) -> None:
        self._app, self._name, self._version, self._environment = app, name, version, environment
        self._found: Optional[FunctionInfo] = None
        self._pid = 0

    def info(self) -> FunctionInfo:
        """What the server knows of it. Raises `NotFoundError`."""
        if self._found is None or self._pid != os.getpid():
            from squall import session
            from squall.client import query
            from squall.http_api.apps import FunctionInfo
            from squall.http_api.routes import Route
            from squall.spec import from_wire

            here = session.current()
            environment = self._environment or here.environment
            path = query(
                Route.FUNCTIONS, app=self._app, name=self._name, environment=environment, version=self._version
            )
            self._found, self._pid = from_wire(FunctionInfo, here.client.json("GET", path)), os.getpid()
        return self._found

    def target(self) -> Target:
        """The function as a target; a version is pinned only if it was asked for."""
        found = self.info()
        return target_by_id(found.app_id, found.name, found.function_id if self._version is not None else "")

    @property
    def found(self) -> Optional[FunctionInfo]:
        """The answer if there is one already."""
        return self._found


def refuse_client(client: Any) -> None:
    """`client=` is part of Modal's signatures; here the environment says which server."""
    if client is not None:
        raise UnimplementedArgument("squall does not have `client=`", fix="Set SQUALL_SERVER_URL and SQUALL_TOKEN.")
