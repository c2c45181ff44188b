"""What a class handle stands for: a class declared here, looked up by name, or received as a value.

Owns what methods and parameters a class has and the reading of them off the class body.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from squall.errors import ExecutionError, InvalidError
from squall.markers import BATCHED, METHOD, PARAMETER_TYPES, WEB, Parameter, yields
from squall.origin import Lookup, target_by_id, target_in

if TYPE_CHECKING:
    from squall.app import App
    from squall.declaration import Declaration
    from squall.http_api.apps import FunctionInfo
    from squall.invoke import Target
    from squall.spec import ParameterSpec


class ParameterRule(NamedTuple):
    """What a class parameter accepts."""

    type: str
    has_default: bool
    default: Any
    may_be_given: bool = True


class ClassSource:
    """Where a class handle comes from. One subclass for each way to get one."""

    label = ""
    """The name in messages."""
    options = ""
    """`http_api.protocol.encode_options` of what is different from the declaration; empty for nothing."""

    def with_options(self, options: str) -> ClassSource:
        """The same class, for instances whose calls run with other options."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, options=options)
        return other

    @property
    def raw(self) -> type:
        """The user's own class."""
        raise ExecutionError(f"the code of {self.label} is not here", fix="Import its file.")

    @property
    def raw_methods(self) -> dict[str, Callable[..., Any]]:
        """The user's own methods, as far as they are here."""
        return {}

    def target(self) -> Target:
        """The class as something to call. May ask the server."""
        raise NotImplementedError

    def known_id(self) -> Optional[str]:
        """Its id, if it is known without asking."""
        return None

    def may_be_method(self, name: str) -> bool:
        """Whether to treat a name as a method. Does not ask the server: before it was asked, every name may be one."""
        return name in self.methods()

    def methods(self) -> dict[str, bool]:
        """Its methods, and which of them are generators. May ask the server."""
        raise NotImplementedError

    def parameters(self) -> dict[str, ParameterRule]:
        """Its parameters. May ask the server."""
        raise NotImplementedError

    def reference(self) -> tuple[Any, ...]:
        """Arguments of the `KnownClass` that another process gets."""
        target = self.target()
        rules = {name: tuple(rule) for name, rule in self.parameters().items()}
        return target.app_id, target.function, target.function_id, self.methods(), rules, self.options


class DeclaredClass(ClassSource):
    """Declared by a decorator in a program that is loaded here."""

    def __init__(self, app: App, raw: type, declaration: Declaration) -> None:
        self.app, self.declaration, self.label = app, declaration, raw.__name__
        self._raw = raw
        self._methods = dict(_methods(raw))
        self._rules: Optional[dict[str, ParameterRule]] = None

    @property
    def raw(self) -> type:
        return self._raw

    @property
    def raw_methods(self) -> dict[str, Callable[..., Any]]:
        return self._methods

    def target(self) -> Target:
        return target_in(self.app, self.label, list)

    def known_id(self) -> Optional[str]:
        return self.app.function_id(self.label)

    def methods(self) -> dict[str, bool]:
        return {name: yields(raw) for name, raw in self._methods.items()}

    def parameters(self) -> dict[str, ParameterRule]:
        if self._rules is None:
            self._rules = dict(_rules(self._raw))
        return self._rules


class NamedClass(ClassSource):
    """Looked up: a class of a deployed app."""

    def __init__(self, app: str, name: str, version: Optional[int], environment: Optional[str]) -> None:
        self.label = f"{app}/{name}"
        self._lookup = Lookup(app, name, version, environment)

    def _info(self) -> FunctionInfo:
        info = self._lookup.info()
        if not info.is_class:
            raise InvalidError(f"{self.label} is a function", fix="Look it up with `squall.Function.from_name`.")
        return info

    def target(self) -> Target:
        self._info()
        return self._lookup.target()

    def known_id(self) -> Optional[str]:
        found = self._lookup.found
        return found.function_id if found else None

    def may_be_method(self, name: str) -> bool:
        return self._lookup.found is None or name in self.methods()

    def methods(self) -> dict[str, bool]:
        return {spec.name: spec.is_generator for spec in self._info().methods}

    def parameters(self) -> dict[str, ParameterRule]:
        return {spec.name: rule_of(spec) for spec in self._info().parameters}


class KnownClass(ClassSource):
    """Came as a value from another process."""

    def __init__(self, reference: tuple[Any, ...]) -> None:
        self._app_id, self.label, self._function_id, self._methods, rules, *more = reference
        self.options = more[0] if more else ""
        self._rules = {name: ParameterRule(*rule) for name, rule in rules.items()}

    def target(self) -> Target:
        return target_by_id(self._app_id, self.label, self._function_id)

    def known_id(self) -> Optional[str]:
        found: str = self._function_id
        return found

    def methods(self) -> dict[str, bool]:
        found: dict[str, bool] = self._methods
        return found

    def parameters(self) -> dict[str, ParameterRule]:
        return self._rules


def rule_of(spec: ParameterSpec) -> ParameterRule:
    """A parameter as the class knows it."""
    default = spec.default
    if spec.type == "bytes" and spec.has_default:
        default = base64.b64decode(default["b64"])
    return ParameterRule(spec.type, spec.has_default, default)


# --- reading the class body ------------------------------------------------------------------------------------------


def attributes(raw: type) -> dict[str, Any]:
    """Attributes of a class and its bases, the nearest of each name."""
    found: dict[str, Any] = {}
    for owner in reversed(raw.__mro__[:-1]):
        found.update(vars(owner))
    return found


def undecorated(value: Any) -> Any:
    """The plain function of a class attribute."""
    return value._squall_raw() if hasattr(type(value), "_squall_raw") else value


def _methods(raw: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, value in attributes(raw).items():
        function = undecorated(value)
        if getattr(function, METHOD, False) or hasattr(function, BATCHED) or hasattr(function, WEB):
            yield name, function


def _rules(raw: type) -> Iterator[tuple[str, ParameterRule]]:
    """Raises `InvalidError` for a parameter that has none of the four types that are possible."""
    types = {kind.__name__: kind for kind in PARAMETER_TYPES}
    annotations: dict[str, Any] = {}
    for owner in reversed(raw.__mro__):
        annotations.update(_annotations(owner))
    for name, value in attributes(raw).items():
        if not isinstance(value, Parameter):
            continue
        given = annotations.get(name)
        kind = types.get(given) if isinstance(given, str) else given
        if kind not in PARAMETER_TYPES:
            raise InvalidError(
                f"the parameter {name} of {raw.__name__} needs the type str, int, bool or bytes, got {given!r}",
                fix=f"Write `{name}: str = squall.parameter()`.",
            )
        if value.has_default and type(value.default) is not kind:
            raise InvalidError(f"the default of the parameter {name} of {raw.__name__} is no {kind.__name__}")
        default = value.default if value.has_default else None
        yield name, ParameterRule(kind.__name__, value.has_default, default, value.init)


def _annotations(owner: type) -> dict[str, Any]:
    # From Python 3.14 on they are computed on access and no longer lie in the class's own dictionary.
    own: Any = vars(owner).get("__annotations__")
    if own is None and "__annotate_func__" in vars(owner):
        own = owner.__annotations__
    return dict(own or {})
