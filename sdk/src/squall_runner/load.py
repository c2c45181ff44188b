"""The user's code: import it, find the function or class, make the instance, find its hooks.

Agreement with the SDK: the attribute named by `qualname` is the raw function or class, or an object whose
`_squall_raw()` returns it. Hooks carry `__squall_hook__`, class parameters `__squall_parameter__`.
"""

from __future__ import annotations

import base64
import importlib
import sys
from typing import Any, Callable, NamedTuple, Optional

from squall_runner.settings import Method, Settings

# Of code objects; the inspect module, which knows them too, takes 10 ms to import.
_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200


class LoadError(Exception):
    """The module was imported, but what the function's spec names is not in it."""


class Callee(NamedTuple):
    """One callable, ready to be called with the caller's arguments."""

    function: Callable[..., Any]
    is_generator: bool
    is_async: bool


class Target(NamedTuple):
    """What this container serves."""

    callees: dict[str, Callee]
    snap: list[Callable[[], Any]]
    """What a snapshot would already contain."""
    enter: list[Callable[[], Any]]
    exit: list[Callable[[], Any]]
    web: dict[str, tuple[Optional[Callable[..., Any]], dict[str, Any]]]
    """Web functions by method, each with its declaration. None: a server that an enter hook starts."""

    @property
    def needs_loop(self) -> bool:
        """Whether anything in it is async."""
        hooks = [*self.snap, *self.enter, *self.exit]
        return (
            bool(self.web)
            or any(c.is_async for c in self.callees.values())
            or any(_flags(hook) & _COROUTINE for hook in hooks)
        )


def import_target(settings: Settings) -> Any:
    """The raw function or class, after importing the user's module."""
    module = importlib.import_module(settings.module)
    _alias_main(module)
    found: Any = module
    for part in settings.qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(f"module {settings.module!r} has no {settings.qualname!r}") from None
    return _raw(found)


def build_target(raw: Any, settings: Settings, snapshot: Optional[Any] = None) -> Target:
    """Callables and hooks; for a class, of a new instance with its parameters set, or of the one in the snapshot."""
    if not settings.is_class:
        methods = settings.methods or [Method("", False, False)]
        if methods[0].web:
            return Target({}, [], [], [], {methods[0].name: (raw, methods[0].web)})
        return Target({methods[0].name: _callee(raw, methods[0])}, [], [], [], {})
    instance = make_instance(raw, settings) if snapshot is None else snapshot
    bound = {m.name: _bound(raw, instance, m.name) for m in settings.methods if m.name}
    callees = {m.name: _callee(bound[m.name], m) for m in settings.methods if not m.web}
    web = {m.name: (bound.get(m.name), m.web) for m in settings.methods if m.web}
    snap = snap_hooks(raw, instance) if snapshot is None else []
    return Target(callees, snap, _hooks(raw, instance, "enter"), _hooks(raw, instance, "exit"), web)


def snap_hooks(raw: Any, instance: Any) -> list[Callable[[], Any]]:
    """Its `@enter(snap=True)` hooks."""
    return _hooks(raw, instance, "enter_snap")


def _alias_main(module: Any) -> None:
    """A script's classes were pickled as `__main__.X` by the caller; here they live in the script's module."""
    main = sys.modules["__main__"]
    if main is not module:
        main.__getattr__ = lambda name: getattr(module, name)  # type: ignore[method-assign]


def _raw(found: Any) -> Any:
    unwrap = getattr(type(found), "_squall_raw", None)
    return unwrap(found) if unwrap is not None else found


def _flags(function: Any) -> int:
    function = getattr(function, "__func__", function)
    while hasattr(function, "func") and not hasattr(function, "__code__"):  # functools.partial
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None:
        call = getattr(type(function), "__call__", None)  # noqa: B004  # its flags are wanted, not whether it exists
        code = getattr(call, "__code__", None)
    return code.co_flags if code is not None else 0


def _callee(function: Any, declared: Method) -> Callee:
    flags = _flags(function)
    return Callee(
        function=function,
        is_generator=declared.is_generator or bool(flags & (_GENERATOR | _ASYNC_GENERATOR)),
        is_async=declared.is_async or bool(flags & (_COROUTINE | _ASYNC_GENERATOR)),
    )


def make_instance(cls: Any, settings: Settings) -> Any:
    """A new instance with its parameters set; no hook has run."""
    params, instance = settings.params or {}, cls()
    declared: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if getattr(value, "__squall_parameter__", False) is True:
                declared[getattr(value, "name", None) or name] = (name, value)
    for name, (attribute, parameter) in declared.items():
        if name in params:
            setattr(instance, attribute, _parameter_value(params[name]))
        elif getattr(parameter, "has_default", True):
            setattr(instance, attribute, parameter.default)
        else:
            raise LoadError(f"class {cls.__qualname__!r} needs a value for its parameter {name!r}")
    return instance


def _parameter_value(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"base64"}:
        return base64.b64decode(value["base64"])
    return value


def _static(cls: Any, name: str) -> Optional[Any]:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


def _bound(cls: Any, instance: Any, name: str) -> Callable[..., Any]:
    found = _static(cls, name)
    if found is None:
        raise LoadError(f"class {cls.__qualname__!r} has no method {name!r}")
    raw = _raw(found)
    bound: Callable[..., Any] = raw.__get__(instance, cls) if hasattr(raw, "__get__") else raw
    return bound


def _hooks(cls: Any, instance: Any, kind: str) -> list[Callable[[], Any]]:
    """Hooks of that kind, base classes first, in the order of their definition; an override counts once."""
    names: dict[str, tuple[()]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if getattr(_raw(value), "__squall_hook__", None) == kind:
                names[name] = ()
            else:
                names.pop(name, None)  # overridden by something that is no hook
    return [_bound(cls, instance, name) for name in names]
