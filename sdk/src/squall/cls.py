"""Classes: `@app.cls`, instances of it, and the markers inside the class body.

Owns parameters and the local use of instances. The runner finds what it needs on the raw class: hooks are functions
with `__squall_hook__`, methods are functions with `__squall_method__`, parameters have `__squall_parameter__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NoReturn, Optional, Sequence, Tuple

from squall.blocking import blocking, running_loop
from squall.declaration import Declaration, is_async, is_generator, parameter_names
from squall.errors import ExecutionError, InvalidError, UnimplementedArgument
from squall.function import (
    POOL_INSTEAD,
    SCALING_INSTEAD,
    Function,
    Lookup,
    Origin,
    target_by_id,
    target_in,
)
from squall.unimplemented import missing_classmethods

if TYPE_CHECKING:
    from squall.app import App
    from squall.invoke import Target
    from squall.spec import MethodSpec, ParameterSpec

HOOK, METHOD, CONCURRENT = "__squall_hook__", "__squall_method__", "__squall_concurrent__"
PARAMETER_TYPES = (str, int, bool, bytes)
_NO_DEFAULT: Any = type("NoDefault", (), {"__repr__": lambda self: "no default"})()


# --- markers ---------------------------------------------------------------------------------------------------------


def method(_without_parentheses: None = None, *, is_generator: Optional[bool] = None) -> Callable[[Any], Any]:
    """Mark a method that can be called remotely."""
    _need_parentheses("method", _without_parentheses)

    def mark(raw: Any) -> Any:
        _check_markable("method", raw)
        setattr(raw, METHOD, True)
        raw.__squall_is_generator__ = is_generator
        return raw

    return mark


def enter(_without_parentheses: None = None, *, snap: bool = False) -> Callable[[Any], Any]:
    """Mark a method that prepares a container before its first input. `snap` needs memory snapshots."""
    _need_parentheses("enter", _without_parentheses)

    def mark(raw: Any) -> Any:
        _check_markable("enter", raw)
        setattr(raw, HOOK, "enter_snap" if snap else "enter")
        return raw

    return mark


def exit(_without_parentheses: None = None) -> Callable[[Any], Any]:
    """Mark a method that runs before a container ends; it has 30 seconds."""
    _need_parentheses("exit", _without_parentheses)

    def mark(raw: Any) -> Any:
        _check_markable("exit", raw)
        if len(parameter_names(raw)) > 0:
            raise InvalidError(f"the exit hook {raw.__qualname__} must not take arguments")
        setattr(raw, HOOK, "exit")
        return raw

    return mark


def concurrent(
    _without_parentheses: None = None, *, max_inputs: int, target_inputs: Optional[int] = None
) -> Callable[[Any], Any]:
    """Let one container run several inputs at once: threads for plain functions, tasks for async ones.

    The autoscaler aims at `target_inputs` for each container (by default `max_inputs`)."""
    _need_parentheses("concurrent", _without_parentheses)
    target = max_inputs if target_inputs is None else target_inputs
    for name, value in (("max_inputs", max_inputs), ("target_inputs", target)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidError(f"@concurrent: {name} must be a whole number from 1, got {value!r}")
    if target > max_inputs:
        raise InvalidError(f"@concurrent: target_inputs ({target}) must not be more than max_inputs ({max_inputs})")

    def mark(raw: Any) -> Any:
        _check_markable("concurrent", raw)
        if hasattr(raw, METHOD) and not isinstance(raw, type):
            raise _concurrent_method(raw)
        setattr(raw, CONCURRENT, (max_inputs, target))
        return raw

    return mark


class Parameter:
    """A class parameter, made by `parameter()`."""

    __squall_parameter__ = True

    def __init__(self, default: Any, init: bool) -> None:
        self.default, self.init, self.name = default, init, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def has_default(self) -> bool:
        """Whether it may be left out."""
        return self.default is not _NO_DEFAULT


def parameter(*, default: Any = _NO_DEFAULT, init: bool = True) -> Any:
    """A class attribute that is given when an instance is made: `x: int = squall.parameter(default=1)`.

    Each set of values has its own containers."""
    if default is not _NO_DEFAULT and not isinstance(default, PARAMETER_TYPES):
        raise InvalidError(f"a parameter is str, int, bool or bytes; its default is {default!r}")
    if not init and default is _NO_DEFAULT:
        raise InvalidError("a parameter with init=False needs a default")
    return Parameter(default, init)


def _need_parentheses(name: str, given: Any) -> None:
    if given is not None:
        raise InvalidError(f"write `@squall.{name}(...)`: the decorator needs its parentheses")


def _check_markable(name: str, raw: Any) -> None:
    if isinstance(raw, (Function, Cls)):
        raise InvalidError(f"@squall.{name} stands above @app.function or @app.cls", fix="Put it below, next to the definition.")
    if not callable(raw):
        raise InvalidError(f"@squall.{name} decorates functions, got {type(raw).__name__}")


def _concurrent_method(raw: Any) -> InvalidError:
    return InvalidError(
        f"@squall.concurrent on the method {raw.__qualname__}: all methods share containers", fix="Put it on the class."
    )


# --- the class -------------------------------------------------------------------------------------------------------


class _Declared:
    """The class as this program declares it."""

    def __init__(self, app: App, raw: type, declaration: Declaration) -> None:
        self.app, self.raw, self.declaration = app, raw, declaration
        self.methods = dict(_methods(raw))
        self.parameters = dict(_parameters(raw))

    def target(self) -> Target:
        return target_in(self.app, self.raw.__name__, list)


class _Named:
    """A class of a deployed app, looked up."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def target(self) -> Target:
        self._info()
        return self._lookup.target()

    def _info(self) -> Any:
        info = self._lookup.info()
        if not info.is_class:
            raise InvalidError(f"{info.app_name}/{info.name} is a function", fix="Look it up with `squall.Function.from_name`.")
        return info

    def method_specs(self) -> Tuple[MethodSpec, ...]:
        methods: Tuple[MethodSpec, ...] = self._info().methods
        return methods

    def parameter_specs(self) -> Tuple[ParameterSpec, ...]:
        parameters: Tuple[ParameterSpec, ...] = self._info().parameters
        return parameters


class _Known:
    """A class of an app that is known by id."""

    def __init__(self, app_id: str, name: str, function_id: str) -> None:
        self._reference = (app_id, name, function_id)

    def target(self) -> Target:
        return target_by_id(*self._reference)


class Cls:
    """A class that runs in containers. Make an instance, then call its methods with `.remote()` and the like."""

    def __init__(self, origin: Any, label: str) -> None:
        self._origin, self._label = origin, label
        if isinstance(origin, _Declared):
            self.__doc__, self.__module__ = origin.raw.__doc__, origin.raw.__module__
            self.__name__, self.__qualname__ = origin.raw.__name__, origin.raw.__qualname__

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
        if client is not None:
            raise InvalidError("client= is not supported", fix="Set SQUALL_SERVER_URL and SQUALL_TOKEN.")
        return cls(_Named(Lookup(app_name, name, version, environment_name)), f"{app_name}/{name}")

    def __call__(self, *args: Any, **parameters: Any) -> Obj:
        if args:
            raise TypeError(f"{self._label}() takes its parameters by name")
        return Obj(self, parameters)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        origin = self.__dict__.get("_origin")
        if not isinstance(origin, _Declared):
            return _Unbound(self._label, name)
        if name in origin.methods:
            return _Unbound(origin.raw.__name__, name)
        return getattr(origin.raw, name)

    def __mro_entries__(self, _bases: Tuple[Any, ...]) -> Tuple[type, ...]:
        return (self._squall_raw(),)

    @blocking
    def hydrate(self) -> Cls:
        """Look it up now rather than at the first use."""
        self._origin.target()
        return self

    def _squall_raw(self) -> type:
        """The undecorated class, for the runner."""
        if not isinstance(self._origin, _Declared):
            raise ExecutionError(f"the code of {self._label} is not here", fix="Import its file.")
        return self._origin.raw

    # --- what the declaration says ---

    @property
    def declaration(self) -> Declaration:
        """The values of its decorator."""
        declaration: Declaration = self._origin.declaration
        return declaration

    @property
    def has_generators(self) -> bool:
        """Whether a method yields."""
        return any(_yields(raw) for raw in self._origin.methods.values())

    def method_specs(self) -> Tuple[MethodSpec, ...]:
        """Its methods, as the platform knows them."""
        from squall.spec import MethodSpec

        if isinstance(self._origin, _Named):
            return self._origin.method_specs()
        return tuple(MethodSpec(name, _yields(raw), is_async(raw)) for name, raw in self._origin.methods.items())

    def parameter_specs(self) -> Tuple[ParameterSpec, ...]:
        """Its parameters, as the platform knows them."""
        from squall.spec import ParameterSpec

        if isinstance(self._origin, _Named):
            return self._origin.parameter_specs()
        types = _parameter_types(self._origin.raw, self._origin.parameters)
        return tuple(
            ParameterSpec(name, types[name].__name__, given.has_default, given.default if given.has_default else None)
            for name, given in self._origin.parameters.items()
        )

    def __reduce__(self) -> Tuple[Any, ...]:
        target = self._origin.target()
        return _known_class, (target.app_id, target.function, target.function_id)

    def __repr__(self) -> str:
        return f"squall.Cls({self._label})"


for _name, _missing in missing_classmethods(
    "Cls",
    {
        **dict.fromkeys(("with_options", "with_concurrency", "with_batching"), POOL_INSTEAD),
        **dict.fromkeys(("update_autoscaler", "autoscaler"), SCALING_INSTEAD),
        "lookup": "Use `squall.Cls.from_name`.",
    },
).items():
    setattr(Cls, _name, _missing)


def declared_class(app: App, raw: type, declaration: Declaration) -> Cls:
    """The handle of a decorated class; its methods get `.remote()` also on `self` inside containers."""
    if raw.__init__ is not object.__init__:  # type: ignore[misc]
        raise InvalidError(
            f"{raw.__name__} has its own __init__", fix="Declare `squall.parameter()` attributes and prepare the rest in @squall.enter()."
        )
    for name, value in _attributes(raw).items():
        if isinstance(value, Function):
            raise InvalidError(f"{raw.__name__}.{name} is decorated with @app.function", fix="Use @squall.method().")
        hook = getattr(value, HOOK, None)
        if hook == "enter_snap":
            raise UnimplementedArgument(
                f"squall does not have memory snapshots yet, which @enter(snap=True) of {raw.__name__}.{name} needs",
                fix="Use @squall.enter().",
            )
        if getattr(value, METHOD, False) and CONCURRENT in vars(_raw_of(value)):
            raise _concurrent_method(_raw_of(value))
    handle = Cls(_Declared(app, raw, declaration), raw.__name__)
    for name, function in handle._origin.methods.items():
        setattr(raw, name, _OnSelf(handle, name, function))
    if declaration and handle._origin.parameters:
        _check_parameters(raw, handle)
    return handle


def _check_parameters(raw: type, handle: Cls) -> None:
    from squall.place import is_local

    if is_local():
        _parameter_types(raw, handle._origin.parameters)


def _attributes(raw: type) -> Dict[str, Any]:
    """Attributes of a class and its bases, the nearest of each name."""
    found: Dict[str, Any] = {}
    for owner in reversed(raw.__mro__[:-1]):
        found.update(vars(owner))
    return found


def _raw_of(value: Any) -> Any:
    return value.raw if isinstance(value, _OnSelf) else value


def _methods(raw: type) -> Iterator[Tuple[str, Callable[..., Any]]]:
    for name, value in _attributes(raw).items():
        if getattr(value, METHOD, False):
            yield name, _raw_of(value)


def _parameters(raw: type) -> Iterator[Tuple[str, Parameter]]:
    for name, value in _attributes(raw).items():
        if isinstance(value, Parameter):
            yield name, value


def _yields(raw: Any) -> bool:
    told = getattr(raw, "__squall_is_generator__", None)
    return is_generator(raw) if told is None else bool(told)


def _parameter_types(raw: type, parameters: Dict[str, Parameter]) -> Dict[str, type]:
    """The annotated types of the parameters. Raises `InvalidError` for others than the four that are possible."""
    by_name = {kind.__name__: kind for kind in PARAMETER_TYPES}
    annotations: Dict[str, Any] = {}
    for owner in reversed(raw.__mro__):
        annotations.update(vars(owner).get("__annotations__") or {})
    found = {}
    for name in parameters:
        given = annotations.get(name)
        kind = by_name.get(given) if isinstance(given, str) else given
        if kind not in PARAMETER_TYPES:
            raise InvalidError(
                f"the parameter {name} of {raw.__name__} needs the type str, int, bool or bytes, got {given!r}",
                fix=f"Write `{name}: str = squall.parameter()`.",
            )
        found[name] = kind
    return found


# --- instances -------------------------------------------------------------------------------------------------------


class Obj:
    """An instance: parameters, remote methods, and, made when something else is asked for, a local object."""

    def __init__(self, cls: Cls, parameters: Dict[str, Any], local: Any = None) -> None:
        state = _ObjState(cls, parameters, local)
        object.__setattr__(self, "_squall", state)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        state: _ObjState = object.__getattribute__(self, "_squall")
        if state.is_method(name):
            return Function(_MethodOrigin(self, state, name))
        return getattr(state.local(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._squall.local(), name, value)

    def __reduce__(self) -> Tuple[Any, ...]:
        state: _ObjState = self._squall
        return Obj, (state.cls, state.values())

    def __repr__(self) -> str:
        state: _ObjState = self._squall
        given = ", ".join(f"{name}={value!r}" for name, value in state.parameters.items())
        return f"{state.cls._label}({given})"


class _ObjState:
    """What an `Obj` knows, apart from it so that no name of the user's class is taken."""

    def __init__(self, cls: Cls, parameters: Dict[str, Any], local: Any) -> None:
        self.cls, self.parameters = cls, parameters
        self._local = local
        self._entered = local is not None
        self._encoded: Optional[str] = None

    def is_method(self, name: str) -> bool:
        origin = self.cls._origin
        return not isinstance(origin, _Declared) or name in origin.methods

    def values(self) -> Dict[str, Any]:
        """All parameters, defaults included. Raises `TypeError` for unknown, missing and wrong ones."""
        origin = self.cls._origin
        if isinstance(origin, _Known):
            return dict(self.parameters)
        values = dict(self.parameters)
        label = self.cls._label
        specs = {spec.name: spec for spec in self.cls.parameter_specs()}
        for name, value in values.items():
            if name not in specs:
                raise TypeError(f"{label}() has no parameter {name!r}; it has {sorted(specs) or 'none'}")
            if isinstance(origin, _Declared) and not origin.parameters[name].init:
                raise TypeError(f"{label}(): the parameter {name!r} cannot be given")
            if type(value).__name__ != specs[name].type:
                raise TypeError(f"{label}(): {name} must be {specs[name].type}, got {value!r}")
        for name, spec in specs.items():
            if name not in values:
                if not spec.has_default:
                    raise TypeError(f"{label}() needs the parameter {name!r}")
                values[name] = spec.default
        return values

    def encoded(self) -> str:
        """The parameters as they travel; empty for none."""
        if self._encoded is None:
            from squall.http_api import MAX_HEADER_PARAMETERS_BYTES, encode_parameters

            values = self.values()
            encoded = encode_parameters(values) if values else ""
            if len(encoded) > MAX_HEADER_PARAMETERS_BYTES:
                raise InvalidError(
                    f"the parameters of {self.cls._label} take {len(encoded)} bytes, at most {MAX_HEADER_PARAMETERS_BYTES}",
                    fix="Pass large values as arguments.",
                )
            self._encoded = encoded
        return self._encoded

    def local(self) -> Any:
        """The local object, made without hooks."""
        if self._local is None:
            raw = self.cls._squall_raw()
            self._local = raw.__new__(raw)
            for name, value in self.values().items():
                setattr(self._local, name, value)
        return self._local

    def hooks(self) -> List[Callable[..., Any]]:
        """Enter hooks that have not run for the local object, base classes first; after this they count as run."""
        if self._entered:
            return []
        self._entered = True
        raw, found = self.cls._squall_raw(), {}
        for owner in reversed(raw.__mro__):
            for name, value in vars(owner).items():
                if getattr(value, HOOK, None) in ("enter", "enter_snap"):
                    found[name] = value
                elif name in found:
                    del found[name]
        return [hook.__get__(self.local()) for hook in found.values()]


class _MethodOrigin(Origin):
    """A method of an instance."""

    def __init__(self, obj: Obj, state: _ObjState, name: str) -> None:
        self._obj, self._state, self._name = obj, state, name
        self.label = f"{state.cls._label}.{name}"
        origin = state.cls._origin
        self.raw = origin.methods.get(name) if isinstance(origin, _Declared) else None

    def target(self) -> Target:
        target: Target = self._state.cls._origin.target()
        raw = self.raw
        return target._replace(
            method=self._name,
            parameters=self._state.encoded(),
            names=(lambda: parameter_names(raw)) if raw is not None else target.names,
        )

    def is_generator(self) -> bool:
        if self.raw is not None:
            return _yields(self.raw)
        if isinstance(self._state.cls._origin, _Known):
            return False
        for spec in self._state.cls.method_specs():
            if spec.name == self._name:
                return spec.is_generator
        known = sorted(spec.name for spec in self._state.cls.method_specs())
        raise AttributeError(f"{self._state.cls._label} has no method {self._name!r}; it has {known}")

    def reduce(self) -> Tuple[Any, ...]:
        return getattr, (self._obj, self._name)

    def local(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        if self.raw is None:
            return super().local(args, kwargs)
        hooks, instance = self._state.hooks(), self._state.local()
        if is_async(self.raw) and not is_generator(self.raw):
            return _enter_and_await(hooks, self.raw, (instance, *args), kwargs)
        for hook in hooks:
            _run_hook(hook)
        return self.raw(instance, *args, **kwargs)


async def _enter_and_await(hooks: Sequence[Callable[..., Any]], raw: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
    for hook in hooks:
        entered = hook()
        if hasattr(entered, "__await__"):
            await entered
    return await raw(*args, **kwargs)


def _run_hook(hook: Callable[..., Any]) -> None:
    entered = hook()
    if not hasattr(entered, "__await__"):
        return
    if running_loop() is not None:
        entered.close()
        raise InvalidError("an async @enter hook cannot run for a plain method inside a running event loop")
    import asyncio

    asyncio.run(_awaited(entered))


async def _awaited(value: Any) -> Any:
    return await value


class _OnSelf:
    """A method as an attribute of the raw class: the plain function on the class, callable and remote on `self`."""

    def __init__(self, cls: Cls, name: str, raw: Callable[..., Any]) -> None:
        self._cls, self._name, self.raw = cls, name, raw
        self.__dict__.update({METHOD: True, "__wrapped__": raw})

    def __get__(self, instance: Any, owner: Optional[type] = None) -> Any:
        if instance is None:
            return self.raw
        return _BoundOnSelf(self._cls, self._name, self.raw, instance)


class _BoundOnSelf(Function):
    """`self.method` inside the class: call it as a plain method, or remotely with the parameters of `self`."""

    def __init__(self, cls: Cls, name: str, raw: Callable[..., Any], instance: Any) -> None:
        self._bound = raw.__get__(instance)  # type: ignore[attr-defined]
        given = {n: vars(instance)[n] for n in cls._origin.parameters if n in vars(instance)}
        obj = Obj(cls, given, instance)
        super().__init__(_MethodOrigin(obj, obj._squall, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._bound(*args, **kwargs)


class _Unbound:
    """`C.method` without an instance."""

    def __init__(self, cls: str, name: str) -> None:
        self._cls, self._name = cls, name

    def __getattr__(self, used: str) -> NoReturn:
        if used.startswith("__"):
            raise AttributeError(used)
        raise AttributeError(
            f"{self._cls}.{self._name}.{used} needs an instance: write {self._cls}().{self._name}.{used}(...)"
        )

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        self.__getattr__("remote")


def _known_class(app_id: str, name: str, function_id: str) -> Cls:
    return Cls(_Known(app_id, name, function_id), name)

