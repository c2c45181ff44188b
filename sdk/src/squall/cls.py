"""Cls: what `@app.cls` returns and `Cls.from_name` looks up. Calling it makes an instance (`obj`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

from squall.blocking import blocking, blocking_static, immediate
from squall.class_source import ClassSource, DeclaredClass, KnownClass, NamedClass, attributes, undecorated
from squall.declaration import Declaration, is_async
from squall.errors import ExecutionError, InvalidError
from squall.function import Function
from squall.markers import BATCHED, CONCURRENT, HOOK, METHOD, WEB, concurrent_method
from squall.obj import Obj, ObjState, OnSelf, Unbound
from squall.origin import refuse_client
from squall.place import is_local
from squall.unimplemented import NO_CLIENT, NO_PAGE, missing_classmethods

if TYPE_CHECKING:
    from squall.app import App
    from squall.spec import MethodSpec, Options, ParameterSpec


class Cls:
    """A class that runs in containers. Make an instance, then call its methods with `.remote()` and the like."""

    def __init__(self, source: ClassSource) -> None:
        self._source = source
        if isinstance(source, DeclaredClass):
            raw = source.raw
            self.__doc__, self.__module__ = raw.__doc__, raw.__module__
            self.__name__, self.__qualname__ = raw.__name__, raw.__qualname__

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
    ) -> Cls:
        """A class of a deployed app. Nothing is asked before the first use of an instance."""
        refuse_client(client)
        return cls(NamedClass(app_name, name, version, environment_name))

    @blocking_static
    def lookup(app_name: str, name: str, client: None = None, environment_name: Optional[str] = None) -> Cls:
        """The old form of `from_name`, which asks at once: it works, and says what it is called now."""
        from squall.old_names import warn_renamed

        warn_renamed("Cls.lookup is called Cls.from_name now")
        found: Cls = Cls.from_name(app_name, name, environment_name=environment_name, client=client)
        found._source.target()
        return found

    def __call__(self, *args: Any, **parameters: Any) -> Obj:
        if args:
            raise TypeError(f"{self._source.label}() takes its parameters by name")
        return Obj(ObjState(self._source, parameters))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__bases__":
            raise AttributeError(name)
        source: ClassSource = object.__getattribute__(self, "_source")
        if name == "__bases__":  # programs ask what it inherits
            if not isinstance(source, DeclaredClass):
                raise AttributeError(name)
            return source.raw.__bases__
        if isinstance(source, DeclaredClass) and name not in source.raw_methods:
            return getattr(source.raw, name)
        return Unbound(source.label, name)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        return (self._source.raw,)

    @property
    def is_hydrated(self) -> bool:
        """Whether it has an id: its app runs, or it was looked up. Asks nothing."""
        return bool(self._source.known_id()) or (self.is_declared and not is_local())

    @property
    def object_id(self) -> str:
        """Id of the class's version. Raises `ExecutionError` before the handle was used or hydrated."""
        found = self._source.known_id()
        if not found:
            raise ExecutionError(f"{self._source.label} has no id yet", fix="Call `.hydrate()` first, or run the app.")
        return found

    @blocking
    def hydrate(self, client: None = None) -> Cls:
        """Look it up now rather than at the first use."""
        refuse_client(client)
        self._source.target()
        return self

    def with_options(self, **options: Any) -> Cls:
        """The class with other settings than declared: instances made of it have containers of their own.

        See `Function.with_options`."""
        from squall import options as given

        return self._variant(given.from_keywords(options))

    def with_concurrency(self, *, max_inputs: int, target_inputs: Optional[int] = None) -> Cls:
        """The class with containers that run several inputs at once."""
        from squall import options as given

        return self._variant(given.of_concurrency(max_inputs, target_inputs))

    def with_batching(self, *, max_batch_size: int, wait_ms: int) -> Cls:
        """The class with another batch size or waiting time."""
        from squall import options as given

        return self._variant(given.of_batching(max_batch_size, wait_ms))

    def _variant(self, options: Options) -> Cls:
        from squall.options import together

        return Cls(self._source.with_options(together(self._source.options, options)))

    def _squall_raw(self) -> type:
        """The undecorated class, for the runner."""
        return self._source.raw

    @property
    def app(self) -> App:
        """The app that declares it."""
        assert isinstance(self._source, DeclaredClass)
        return self._source.app

    @property
    def is_declared(self) -> bool:
        """Whether its code is here."""
        return isinstance(self._source, DeclaredClass)

    @property
    def declaration(self) -> Declaration:
        """The values of its decorator."""
        assert isinstance(self._source, DeclaredClass)
        return self._source.declaration

    @property
    def has_generators(self) -> bool:
        """Whether a method yields."""
        return any(self._source.methods().values())

    def method_specs(self) -> tuple[MethodSpec, ...]:
        """Its methods, as the platform knows them."""
        from squall.spec import MethodSpec
        from squall.web import spec_of

        raw = self._source.raw_methods
        return tuple(
            MethodSpec(name, generator, is_async(raw.get(name)), spec_of(raw.get(name)))
            for name, generator in self._source.methods().items()
        )

    def parameter_specs(self) -> tuple[ParameterSpec, ...]:
        """Its parameters, as the platform knows them."""
        from squall.spec import ParameterSpec

        return tuple(
            ParameterSpec(name, rule.type, rule.has_default, rule.default)
            for name, rule in self._source.parameters().items()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _known_class, (self._source.reference(),)

    def __repr__(self) -> str:
        return f"squall.Cls({self._source.label})"


for _name, _missing in missing_classmethods(
    "Cls",
    {
        "get_dashboard_url": NO_PAGE,
        "client": NO_CLIENT,
        **dict.fromkeys(
            ("update_autoscaler", "autoscaler"), "Make an instance first: each set of parameters has its own."
        ),
    },
).items():
    setattr(Cls, _name, _missing)


def declared_class(app: App, raw: type, declaration: Declaration) -> Cls:
    """The handle of a decorated class; its methods get `.remote()` also on `self` inside containers."""
    if raw.__init__ is not object.__init__:  # type: ignore[misc]
        raise InvalidError(
            f"{raw.__name__} has its own __init__",
            fix="Declare `squall.parameter()` attributes and prepare the rest in @squall.enter().",
        )
    _check_body(raw, attributes(raw), bool(declaration.snapshot))
    source = DeclaredClass(app, raw, declaration)
    if is_local():
        source.parameters()
    for name, function in source.raw_methods.items():
        setattr(raw, name, OnSelf(source, name, function))
    return Cls(source)


def batch_of(raw: type) -> Optional[tuple[int, int]]:
    """Batch size and waiting time of a class whose one method is batched."""
    functions = [undecorated(value) for value in attributes(raw).values()]
    methods = [each for each in functions if getattr(each, METHOD, False) or hasattr(each, BATCHED)]
    batches = [getattr(each, BATCHED) for each in methods if hasattr(each, BATCHED)]
    if batches and len(methods) > 1:
        raise InvalidError(
            f"{raw.__name__} has a batched method and {len(methods) - 1} more: a batched method must be the only one",
            fix="Put the other methods into a class of their own.",
        )
    return batches[0] if batches else None


def _check_body(raw: type, body: dict[str, Any], has_snapshot: bool) -> None:
    for name, value in body.items():
        if isinstance(value, Function):
            raise InvalidError(f"{raw.__name__}.{name} is decorated with @app.function", fix="Use @squall.method().")
        function = undecorated(value)
        if getattr(function, HOOK, None) == "enter_snap" and not has_snapshot:
            raise InvalidError(
                f"@enter(snap=True) of {raw.__name__}.{name} needs a memory snapshot",
                fix="Write `@app.cls(enable_memory_snapshot=True)`, or use @squall.enter().",
            )
        marked = getattr(function, METHOD, False) or hasattr(function, BATCHED) or hasattr(function, WEB)
        if marked and hasattr(function, CONCURRENT):
            raise concurrent_method(function)


def _known_class(reference: tuple[Any, ...]) -> Cls:
    """A handle that was a value in another process."""
    return Cls(KnownClass(reference))
