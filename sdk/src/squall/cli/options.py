"""The options of a user's function: read off its signature, parsed from the command line.

`--name value` for each parameter, typed by its annotation. Owns the types that are understood; calls nothing.
"""

from __future__ import annotations

import datetime
import difflib
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

from squall.errors import InvalidError, UsageError

DATETIME_FORMATS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")
_PLAIN: dict[Any, str] = {
    str: "TEXT",
    int: "INTEGER",
    float: "FLOAT",
    bool: "",
    datetime.datetime: "DATETIME",
    bytes: "BYTES",
}


class HelpWanted(Exception):
    """`--help` stood among the arguments."""


@dataclass(frozen=True)
class Option:
    """One parameter as an option."""

    parameter: str
    type: Any = str
    choices: tuple[Any, ...] = ()
    """Of a `Literal`."""
    default: Any = inspect.Parameter.empty

    @property
    def flag(self) -> str:
        return "--" + self.parameter.replace("_", "-")

    @property
    def negative(self) -> str:
        return "--no-" + self.parameter.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def shown(self) -> str:
        """The option as the help shows it."""
        if self.type is bool:
            return f"{self.flag} / {self.negative}"
        return f"{self.flag} {'|'.join(map(str, self.choices)) or _PLAIN[self.type]}"


@dataclass(frozen=True)
class Options:
    """What a function takes from the command line."""

    options: tuple[Option, ...] = ()
    raw: bool = False
    """The function takes `*args`: everything goes to it as it stands."""

    def parse(self, arguments: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Positional and keyword arguments of the call. Raises `UsageError`, or `HelpWanted`."""
        if self.raw:
            return tuple(arguments), {}
        values: dict[str, Any] = {}
        waiting = list(arguments)
        while waiting:
            word = waiting.pop(0)
            if word in ("-h", "--help"):
                raise HelpWanted
            self._take(word, waiting, values)
        missing = [option for option in self.options if option.required and option.parameter not in values]
        if missing:
            raise UsageError(
                f"{', '.join(option.flag for option in missing)} {'is' if len(missing) == 1 else 'are'} missing",
                fix="Add " + " ".join(option.shown.partition(" / ")[0] for option in missing) + ".",
            )
        return (), values

    def help(self) -> list[tuple[str, str]]:
        """Option and remark, a row each."""
        return [
            (option.shown, "required" if option.required else f"default: {option.default}") for option in self.options
        ]

    def _take(self, word: str, waiting: list[str], values: dict[str, Any]) -> None:
        flag, separator, inline = word.partition("=")
        option = next((o for o in self.options if flag == o.flag or (o.type is bool and flag == o.negative)), None)
        if option is None:
            raise self._unknown(word)
        if option.type is bool:
            if separator:
                raise UsageError(f"{flag} takes no value", fix=f"Use {option.flag} or {option.negative}.")
            values[option.parameter] = flag == option.flag
            return
        if not separator and not waiting:
            raise UsageError(f"{flag} needs a value", fix=f"Use {option.shown}.")
        values[option.parameter] = convert(option, inline if separator else waiting.pop(0))

    def _unknown(self, word: str) -> UsageError:
        flags = [option.flag for option in self.options]
        if not word.startswith("--"):
            fix = (
                f"Give values by name: {' '.join(option.shown for option in self.options)}"
                if flags
                else "It takes no arguments."
            )
            return UsageError(f"unexpected argument {word!r}", fix=fix)
        close = difflib.get_close_matches(word.partition("=")[0], flags, n=1)
        known = f"Its options are {', '.join(flags)}." if flags else "The function takes none."
        return UsageError(f"no such option: {word}", fix=f"Did you mean {close[0]}?" if close else known)


def of_callable(function: Callable[..., Any], skip_first: bool = False) -> Options:
    """The options of a function; `skip_first` leaves out `self`. Raises `InvalidError` for what cannot be an option."""
    parameters = list(inspect.signature(function).parameters.values())[1 if skip_first else 0 :]
    if [p.kind for p in parameters] == [inspect.Parameter.VAR_POSITIONAL]:
        return Options(raw=True)
    hints = _hints(function)
    options = []
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**"
            raise InvalidError(
                f"{stars}{parameter.name} of {function.__name__}() cannot come from the command line",
                fix="Use a `*args` alone to get everything as text, or name each parameter.",
            )
        options.append(
            of_parameter(parameter.name, hints.get(parameter.name, Any), parameter.default, function.__name__)
        )
    return Options(tuple(options))


def of_parameter(name: str, annotation: Any, default: Any, owner: str) -> Option:
    """One option. Raises `InvalidError` when the annotation is not one that text can become."""
    inner = _without_none(annotation)
    if inner in (Any, inspect.Parameter.empty):
        inner = str
    if inner in _PLAIN:
        return Option(name, inner, (), default)
    choices = typing.get_args(inner)
    if typing.get_origin(inner) is typing.Literal and len({type(choice) for choice in choices}) == 1:
        kind = type(choices[0])
        if kind in (str, int):
            return Option(name, kind, choices, default)
    shown = (
        getattr(annotation, "__name__", None)
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )
    raise InvalidError(
        f"parameter {name!r} of {owner}() is annotated {shown}, which cannot come from the command line",
        fix="Annotate it str, int, float, bool, datetime.datetime, Literal[...] or Optional of these, or take text.",
    )


def convert(option: Option, text: str) -> Any:
    """The value that a text means. Raises `UsageError`."""
    try:
        value = _CONVERT[option.type](text)
    except ValueError:
        raise UsageError(f"{option.flag} {text!r} is not {_NOUN[option.type]}", fix=f"Use {option.shown}.") from None
    if option.choices and value not in option.choices:
        raise UsageError(
            f"{option.flag} {text!r} is not one of the choices", fix=f"Use {', '.join(map(str, option.choices))}."
        )
    return value


def _datetime(text: str) -> datetime.datetime:
    for form in DATETIME_FORMATS:
        try:
            return datetime.datetime.strptime(text, form)  # noqa: DTZ007 — as naive as it was typed
        except ValueError:
            continue
    raise ValueError(text)


_CONVERT: Mapping[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    float: float,
    datetime.datetime: _datetime,
    bytes: str.encode,
}
_NOUN = {int: "an integer", float: "a number", datetime.datetime: "a date like 2025-01-31 or 2025-01-31T12:00:00"}


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise InvalidError(
            f"an annotation of {function.__name__}() cannot be read: {error}",
            fix="Import what its annotations name; on Python 3.9 write Optional[int] for int | None.",
        ) from error


def _without_none(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    others = [argument for argument in arguments if argument is not type(None)]
    origin: Optional[Any] = typing.get_origin(annotation)
    is_union = origin is typing.Union or getattr(origin, "__name__", "") == "UnionType"
    return others[0] if is_union and len(others) == 1 and len(others) < len(arguments) else annotation
