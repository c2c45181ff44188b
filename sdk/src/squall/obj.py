"""Instances of remote classes: their parameters, their methods as handles, and the local object behind `.local()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, NoReturn, Optional

from squall.blocking import running_loop
from squall.class_source import ClassSource, DeclaredClass, KnownClass
from squall.declaration import is_async, parameter_names
from squall.errors import InvalidError
from squall.function import Function
from squall.markers import HOOK, METHOD
from squall.origin import Origin

if TYPE_CHECKING:
    from squall.invoke import Target


CONTAINERS = ("update_autoscaler", "autoscaler", "get_current_stats")
"""What an instance has besides its methods: these are about its containers."""


class Obj:
    """An instance. Its methods have `.remote()` and the like; everything else is that of a local object."""

    def __init__(self, state: ObjState) -> None:
        object.__setattr__(self, "_squall", state)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        state: ObjState = object.__getattribute__(self, "_squall")
        if name in CONTAINERS and name not in state.source.raw_methods:
            return getattr(Function(ContainersOrigin(state)), name)
        if state.source.may_be_method(name):
            return Function(MethodOrigin(state, name))
        if not isinstance(state.source, DeclaredClass):
            raise state.no_method(name)
        return getattr(state.local(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._squall.local(), name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        state: ObjState = self._squall
        return _known_obj, (state.source.reference(), state.values())

    def __repr__(self) -> str:
        state: ObjState = self._squall
        given = ", ".join(f"{name}={value!r}" for name, value in state.given.items())
        return f"{state.source.label}({given})"


class ObjState:
    """What an `Obj` knows, apart from it so that no name of the user's class is taken."""

    def __init__(self, source: ClassSource, given: dict[str, Any], local: Any = None) -> None:
        self.source, self.given = source, given
        self._local = local
        self._entered = local is not None
        self._encoded: Optional[str] = None

    def no_method(self, name: str) -> AttributeError:
        """The error for a name that the class does not have."""
        return AttributeError(f"{self.source.label} has no method {name!r}; it has {sorted(self.source.methods())}")

    def values(self) -> dict[str, Any]:
        """All parameters, defaults included. Raises `TypeError` for unknown, missing and wrong ones."""
        label, rules, values = self.source.label, self.source.parameters(), dict(self.given)
        for name, value in values.items():
            if name not in rules:
                raise TypeError(f"{label}() has no parameter {name!r}; it has {sorted(rules) or 'none'}")
            if not rules[name].may_be_given:
                raise TypeError(f"{label}(): the parameter {name!r} cannot be given")
            if type(value).__name__ != rules[name].type:
                raise TypeError(f"{label}(): {name} must be {rules[name].type}, got {value!r}")
        for name, rule in rules.items():
            if name not in values:
                if not rule.has_default:
                    raise TypeError(f"{label}() needs the parameter {name!r}")
                values[name] = rule.default
        return values

    def encoded(self) -> str:
        """The parameters as they travel; empty for none."""
        if self._encoded is None:
            from squall.http_api.protocol import MAX_HEADER_PARAMETERS_BYTES, encode_parameters

            values = self.values()
            encoded = encode_parameters(values) if values else ""
            if len(encoded) > MAX_HEADER_PARAMETERS_BYTES:
                raise InvalidError(
                    f"the parameters of {self.source.label} take {len(encoded)} bytes, "
                    f"at most {MAX_HEADER_PARAMETERS_BYTES} are possible",
                    fix="Pass large values as arguments.",
                )
            self._encoded = encoded
        return self._encoded

    def local(self) -> Any:
        """The local object, made without hooks."""
        if self._local is None:
            self._local = self.source.raw()
            for name, value in self.values().items():
                setattr(self._local, name, value)
        return self._local

    def hooks(self) -> list[Callable[[], Any]]:
        """Enter hooks that have not run for the local object, those of the snapshot first, then base classes first;
        after this they count as run."""
        if self._entered:
            return []
        self._entered = True
        found: dict[str, None] = {}
        for owner in reversed(self.source.raw.__mro__):
            for name, value in vars(owner).items():
                if getattr(value, HOOK, None) in ("enter", "enter_snap"):
                    found[name] = None
                else:
                    found.pop(name, None)  # overridden by something that is no hook
        first = sorted(found, key=lambda name: getattr(getattr(self.source.raw, name), HOOK) != "enter_snap")
        return [getattr(self.local(), name) for name in first]


class MethodOrigin(Origin):
    """A method of an instance."""

    is_method = True

    def __init__(self, state: ObjState, name: str) -> None:
        self._state, self._name = state, name
        self.label = f"{state.source.label}.{name}"
        self.raw = state.source.raw_methods.get(name)

    def target(self) -> Target:
        target, raw = self._state.source.target(), self.raw
        names = (lambda: parameter_names(raw)) if raw is not None else target.names
        state = self._state
        return target._replace(method=self._name, parameters=state.encoded(), options=state.source.options, names=names)

    def is_generator(self) -> bool:
        methods = self._state.source.methods()
        if self._name not in methods:
            raise self._state.no_method(self._name)
        return methods[self._name]

    def reduce(self) -> tuple[Any, ...]:
        return getattr, (Obj(self._state), self._name)

    def local(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.raw is None:
            return super().local(args, kwargs)
        hooks, instance = self._state.hooks(), self._state.local()
        if is_async(self.raw) and not self.is_generator():
            return _enter_and_await(hooks, self.raw, (instance, *args), kwargs)
        for hook in hooks:
            _run_hook(hook)
        return self.raw(instance, *args, **kwargs)


class ContainersOrigin(Origin):
    """The containers of an instance: those of its set of parameters."""

    def __init__(self, state: ObjState) -> None:
        self._state, self.label = state, state.source.label

    def target(self) -> Target:
        source = self._state.source
        return source.target()._replace(parameters=self._state.encoded(), options=source.options)


async def _enter_and_await(
    hooks: Sequence[Callable[[], Any]], raw: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    for hook in hooks:
        entered = hook()
        if hasattr(entered, "__await__"):
            await entered
    return await raw(*args, **kwargs)


def _run_hook(hook: Callable[[], Any]) -> None:
    entered = hook()
    if not hasattr(entered, "__await__"):
        return
    if running_loop() is not None:
        entered.close()
        raise InvalidError(
            "an async @enter hook cannot run for a plain method inside a running event loop",
            fix="Make the method `async def`, or call `.local()` outside of the loop.",
        )
    import asyncio

    asyncio.run(_awaited(entered))


async def _awaited(value: Any) -> Any:
    return await value


class OnSelf:
    """A method as an attribute of the raw class: the plain function on the class, callable and remote on `self`."""

    def __init__(self, source: ClassSource, name: str, raw: Callable[..., Any]) -> None:
        self._source, self._name, self.__wrapped__ = source, name, raw
        setattr(self, METHOD, True)

    def __get__(self, instance: Any, owner: Optional[type] = None) -> Any:
        if instance is None:
            return self.__wrapped__
        return _BoundOnSelf(self._source, self._name, self.__wrapped__, instance)

    def _squall_raw(self) -> Callable[..., Any]:
        return self.__wrapped__


class _BoundOnSelf(Function):
    """`self.method` inside the class: call it as a plain method, or remotely with the parameters of `self`."""

    def __init__(self, source: ClassSource, name: str, raw: Any, instance: Any) -> None:
        self._bound = raw.__get__(instance)
        given = {
            p: vars(instance)[p] for p, rule in source.parameters().items() if rule.may_be_given and p in vars(instance)
        }
        super().__init__(MethodOrigin(ObjState(source, given, instance), name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._bound(*args, **kwargs)


class Unbound:
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
        raise TypeError(f"{self._cls}.{self._name} needs an instance: write {self._cls}().{self._name}.remote(...)")


def _known_obj(reference: tuple[Any, ...], values: dict[str, Any]) -> Obj:
    """An instance that was a value in another process."""
    source = KnownClass(reference)
    given = {name: value for name, value in values.items() if source.parameters()[name].may_be_given}
    return Obj(ObjState(source, given))
