"""The markers inside the body of a class, and `@concurrent`: they note on the raw function or class what was said.

The runner finds them there: hooks are functions with `__squall_hook__`, methods have `__squall_method__`, parameters
`__squall_parameter__`.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from squall.declaration import CO_VARIADIC, code_flags, is_generator, is_whole, parameter_names
from squall.errors import InvalidError

HOOK, METHOD, CONCURRENT, BATCHED, WEB = (
    "__squall_hook__",
    "__squall_method__",
    "__squall_concurrent__",
    "__squall_batched__",
    "__squall_web__",
)
MAX_BATCH_SIZE, MAX_WAIT_MS = 1000, 600_000
MOST_AT_ONCE = 1000
"""Inputs that one container gets at once if only what to aim at is said."""
PARAMETER_TYPES = (str, int, bool, bytes)
_NO_DEFAULT: Any = type("NoDefault", (), {"__repr__": lambda self: "no default"})()


def method(_without_parentheses: None = None, *, is_generator: Optional[bool] = None) -> Callable[[Any], Any]:
    """Mark a method that can be called remotely."""
    need_parentheses("method", _without_parentheses)

    def mark(raw: Any) -> Any:
        check_markable("method", raw)
        setattr(raw, METHOD, True)
        raw.__squall_is_generator__ = is_generator
        return raw

    return mark


def enter(_without_parentheses: None = None, *, snap: bool = False) -> Callable[[Any], Any]:
    """Mark a method that prepares a container before its first input. `snap` needs memory snapshots."""
    need_parentheses("enter", _without_parentheses)

    def mark(raw: Any) -> Any:
        check_markable("enter", raw)
        setattr(raw, HOOK, "enter_snap" if snap else "enter")
        return raw

    return mark


def exit(_without_parentheses: None = None) -> Callable[[Any], Any]:
    """Mark a method that runs before a container ends; it has 30 seconds."""
    need_parentheses("exit", _without_parentheses)

    def mark(raw: Any) -> Any:
        check_markable("exit", raw)
        if len(parameter_names(raw)) > 0:
            raise InvalidError(f"the exit hook {raw.__qualname__} must not take arguments")
        setattr(raw, HOOK, "exit")
        return raw

    return mark


def concurrent(
    _without_parentheses: None = None, *, max_inputs: Optional[int] = None, target_inputs: Optional[int] = None
) -> Callable[[Any], Any]:
    """Let one container run several inputs at once: threads for plain functions, tasks for async ones.

    The autoscaler aims at `target_inputs` for each container (by default `max_inputs`). With `target_inputs` alone a
    container gets up to 1000 at once, or as many as that says."""
    need_parentheses("concurrent", _without_parentheses)
    if max_inputs is None:
        if target_inputs is None:
            raise TypeError("write `@squall.concurrent(max_inputs=...)`: how many inputs one container may have")
        max_inputs = max(MOST_AT_ONCE, target_inputs) if is_whole(target_inputs) else target_inputs
    marked = check_concurrency(max_inputs, target_inputs, "@concurrent")

    def mark(raw: Any) -> Any:
        check_markable("concurrent", raw)
        if hasattr(raw, METHOD) and not isinstance(raw, type):
            raise concurrent_method(raw)
        setattr(raw, CONCURRENT, marked)
        return raw

    return mark


def check_concurrency(max_inputs: Any, target_inputs: Any, where: str) -> tuple[int, int]:
    """Both limits. Raises `InvalidError` for ones that do not fit each other."""
    target = max_inputs if target_inputs is None else target_inputs
    for name, value in (("max_inputs", max_inputs), ("target_inputs", target)):
        if not is_whole(value) or value < 1:
            raise InvalidError(f"{where}: {name} must be a whole number from 1, got {value!r}")
    if target > max_inputs:
        raise InvalidError(f"{where}: target_inputs ({target}) must not be more than max_inputs ({max_inputs})")
    return max_inputs, target


def batched(_without_parentheses: None = None, *, max_batch_size: int, wait_ms: int) -> Callable[[Any], Any]:
    """Collect inputs: the body gets one list for each parameter and returns a list with a result for each input.

    Callers pass and get single values. A batch runs when it is full, or when its first input has waited `wait_ms`."""
    need_parentheses("batched", _without_parentheses)
    check_batch(max_batch_size, wait_ms, "@batched")

    def mark(raw: Any) -> Any:
        check_markable("batched", raw)
        _check_batchable(raw)
        setattr(raw, BATCHED, (max_batch_size, wait_ms))
        return raw

    return mark


def check_batch(max_batch_size: Any, wait_ms: Any, where: str) -> None:
    """Raise `InvalidError` for limits that no batch can have."""
    if not is_whole(max_batch_size) or not 1 <= max_batch_size <= MAX_BATCH_SIZE:
        raise InvalidError(f"{where}: max_batch_size must be 1 to {MAX_BATCH_SIZE}, got {max_batch_size!r}")
    if not is_whole(wait_ms) or not 0 <= wait_ms <= MAX_WAIT_MS:
        raise InvalidError(f"{where}: wait_ms must be 0 to {MAX_WAIT_MS}, got {wait_ms!r}")


def _check_batchable(raw: Any) -> None:
    if isinstance(raw, type):
        raise InvalidError(
            f"@squall.batched decorates functions, {raw.__qualname__} is a class", fix="Mark its method."
        )
    if is_generator(raw):
        raise InvalidError(f"{raw.__qualname__} is a generator", fix="Return a list with one result for each input.")
    if getattr(raw, "__defaults__", None) or getattr(raw, "__kwdefaults__", None):
        raise InvalidError(
            f"{raw.__qualname__} is batched: its parameters cannot have defaults",
            fix="Every call gives every parameter; apply the default where you call it, or to `None` in the body.",
        )
    if code_flags(raw) & CO_VARIADIC:
        raise InvalidError(
            f"{raw.__qualname__} is batched: it cannot take *args or **kwargs", fix="Name its parameters."
        )


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


def need_parentheses(name: str, given: Any) -> None:
    """Raise `InvalidError` for a decorator that was written without its parentheses."""
    if given is not None:
        raise InvalidError(f"write `@squall.{name}(...)`: the decorator needs its parentheses")


def check_markable(name: str, raw: Any) -> None:
    """Raise `InvalidError` unless it is a plain function or class, below the app's decorator."""
    if hasattr(type(raw), "_squall_raw"):
        raise InvalidError(
            f"@squall.{name} stands above @app.function or @app.cls", fix="Put it below, next to the definition."
        )
    if not callable(raw):
        raise InvalidError(f"@squall.{name} decorates functions, got {type(raw).__name__}")


def concurrent_method(raw: Any) -> InvalidError:
    """The error for a method with `@concurrent`."""
    return InvalidError(
        f"@squall.concurrent on the method {raw.__qualname__}: all methods share containers", fix="Put it on the class."
    )


def yields(raw: Any) -> bool:
    """Whether a marked method is a generator."""
    told = getattr(raw, "__squall_is_generator__", None)
    return is_generator(raw) if told is None else bool(told)
