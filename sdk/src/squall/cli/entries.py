"""What of a program can be run: its local entrypoints, functions and methods, and which of them is meant.

Candidates are ranked: local entrypoints of the module, its functions and methods, then what only its apps know. Exactly
one best candidate is run; otherwise the error lists the choices.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Optional, Union

from squall.app import App
from squall.cli import options
from squall.cli.reference import Reference
from squall.cls import Cls
from squall.errors import InvalidError, ProgramError, UsageError
from squall.function import Function
from squall.local_entrypoint import LocalEntrypoint
from squall.web import mark_of

Target = Union[LocalEntrypoint, Function, Cls]
VARIANT = 4
"""Rank of a class with other options than declared: run when it is named, never by itself."""


@dataclass(frozen=True)
class Entry:
    """One thing that can be run."""

    name: str
    """As it is written after `::`."""
    app: App
    target: Target
    rank: int
    method: str = ""
    """Of a class."""

    @property
    def is_local(self) -> bool:
        """Whether it runs here."""
        return isinstance(self.target, LocalEntrypoint)

    @property
    def kind(self) -> str:
        """In words."""
        if self.is_local:
            return "local entrypoint"
        return "method" if self.method else "function"

    @property
    def raw(self) -> Any:
        """The user's own function."""
        if isinstance(self.target, Cls):
            return getattr(self.target._squall_raw(), self.method)
        return self.target._squall_raw()

    @property
    def is_generator(self) -> bool:
        """Whether it yields."""
        if isinstance(self.target, Cls):
            return next(spec.is_generator for spec in self.target.method_specs() if spec.name == self.method)
        return isinstance(self.target, Function) and self.target.is_generator

    @property
    def is_web(self) -> bool:
        """Whether it answers HTTP requests, and nothing else."""
        if isinstance(self.target, Cls):
            return next(spec.web is not None for spec in self.target.method_specs() if spec.name == self.method)
        return isinstance(self.target, Function) and mark_of(self.target._origin.raw) is not None

    def parameters(self) -> dict[str, options.Option]:
        """The parameters of a class as options."""
        if not isinstance(self.target, Cls):
            return {}
        types = {"str": str, "int": int, "bool": bool, "bytes": bytes}
        nothing = options.Option("").default
        return {
            spec.name: options.Option(spec.name, types[spec.type], (), spec.default if spec.has_default else nothing)
            for spec in self.target.parameter_specs()
        }

    def options(self) -> options.Options:
        """Everything that it takes from the command line. Raises `InvalidError` for what cannot come from there."""
        own = options.of_callable(self.raw, skip_first=bool(self.method))
        parameters = self.parameters()
        twice = [option.parameter for option in own.options if option.parameter in parameters]
        if twice:
            raise InvalidError(
                f"{twice[0]!r} is a parameter of both the class and the method {self.name}",
                fix="Rename one of them, or call it from a local entrypoint.",
            )
        return options.Options((*parameters.values(), *own.options), own.raw)

    def handle(self, values: dict[str, Any]) -> Any:
        """What is called remotely; takes its class parameters out of `values`."""
        if not isinstance(self.target, Cls):
            return self.target
        given = {name: values.pop(name) for name in self.parameters() if name in values}
        return getattr(self.target(**given), self.method)


def choose(module: ModuleType, reference: Reference) -> Entry:
    """What the reference means. Raises `ProgramError` or `UsageError` listing the choices."""
    entries = list(find(module))
    if reference.target:
        return _not_web(_named(entries, module, reference), reference)
    entries = [entry for entry in entries if not entry.is_web] or entries[:1]
    if not entries:
        raise ProgramError(
            f"{reference.text} has nothing to run: {_what_it_has(module)}",
            fix="Decorate a function with `@app.function()` or `@app.local_entrypoint()`.",
        )
    best = min(entry.rank for entry in entries)
    candidates = [entry for entry in entries if entry.rank == best]
    if len(candidates) > 1:
        raise UsageError(
            f"{reference.text} has several things to run:\n{_listed(candidates)}",
            fix=f"Say which, e.g. `squall run {reference.with_target(candidates[0].name)}`.",
        )
    return _not_web(candidates[0], reference)


def _not_web(entry: Entry, reference: Reference) -> Entry:
    if entry.is_web:
        raise InvalidError(
            f"{entry.name} is a web function: it is called over HTTP",
            fix=f"Use `squall serve {reference.text.partition('::')[0]}`, or `squall deploy`.",
        )
    return entry


def find(module: ModuleType) -> Iterator[Entry]:
    """Everything in a program that can be run, each thing once."""
    seen: list[tuple[int, str]] = []
    for entry in _all(module):
        key = (id(entry.target), entry.method)
        if key not in seen:
            seen.append(key)
            yield entry


def apps(module: ModuleType) -> dict[str, App]:
    """The apps of a program by variable; apps that only its functions know come last, without one."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, App)}
    for value in vars(module).values():
        owner = value.app if isinstance(value, (LocalEntrypoint, Function)) and _is_declared(value) else None
        if owner is not None and all(owner is not app for app in found.values()):
            found[f"({owner.name or len(found)})"] = owner
    return found


def choose_app(module: ModuleType, reference: Reference) -> App:
    """The app that `deploy` means: the named variable, else `app`, else the only one."""
    found = apps(module)
    listed = ", ".join(found) or "none"
    if reference.target:
        named = found.get(reference.target)
        if named is None:
            raise ProgramError(
                f"{reference.target!r} is not an app of {reference.text.partition('::')[0]}",
                fix=f"Its apps are: {listed}.",
            )
        return named
    if not found:
        raise ProgramError(f"{reference.text} has no app", fix='Make one: `app = squall.App("name")`.')
    if "app" in found or len(found) == 1:
        return found.get("app") or next(iter(found.values()))
    raise UsageError(
        f"{reference.text} has several apps: {listed}",
        fix=f"Say which, e.g. `squall deploy {reference.with_target(next(iter(found)))}`.",
    )


def _all(module: ModuleType) -> Iterator[Entry]:
    owners = apps(module)
    for name, value in vars(module).items():
        if isinstance(value, LocalEntrypoint):
            yield Entry(value.name if value.name == name else name, value.app, value, 0)
    for name, value in vars(module).items():
        if isinstance(value, Function) and _is_declared(value):
            yield Entry(name, value.app, value, 1)
        elif isinstance(value, Cls):
            owner = _owner(value, owners)
            if owner is not None:
                yield from _methods(name, owner, value, 1)
            elif value.is_declared:
                yield from _methods(name, value.app, value, VARIANT)
    for variable, app in owners.items():
        for name, entrypoint in app.registered_entrypoints.items():
            yield Entry(f"{variable}.{name}", app, entrypoint, 2)
        for name, function in app.registered_functions.items():
            yield Entry(f"{variable}.{name}", app, function, 3)
        for name, handle in app.registered_classes.items():
            yield from _methods(name, app, handle, 3)


def _methods(name: str, app: App, handle: Cls, rank: int) -> Iterator[Entry]:
    for spec in handle.method_specs():
        yield Entry(f"{name}.{spec.name}".rstrip("."), app, handle, rank, spec.name)


def _owner(handle: Cls, owners: dict[str, App]) -> Optional[App]:
    return next(
        (app for app in owners.values() if any(handle is known for known in app.registered_classes.values())), None
    )


def _is_declared(value: Any) -> bool:
    """Whether its code is here; a looked-up handle belongs to another program."""
    return isinstance(value, LocalEntrypoint) or value._origin.raw is not None


def _named(entries: Sequence[Entry], module: ModuleType, reference: Reference) -> Entry:
    wanted = reference.target
    owners = apps(module)
    if wanted in owners:
        return _of_app(entries, owners[wanted], reference)
    exact = [entry for entry in entries if wanted in _spellings(entry, owners)]
    if len(exact) == 1:
        return exact[0]
    of_class = [entry for entry in entries if entry.method and entry.name.partition(".")[0] == wanted]
    of_class = [entry for entry in of_class if not entry.is_web] or of_class
    if len(of_class) == 1:
        return of_class[0]
    if of_class:
        raise UsageError(
            f"the class {wanted} has several methods:\n{_listed(of_class)}",
            fix=f"Say which, e.g. `squall run {reference.with_target(of_class[0].name)}`.",
        )
    names = [entry.name for entry in entries]
    close = difflib.get_close_matches(wanted, names, n=1)
    there = f"\n{_listed(entries)}" if entries else ""
    if hasattr(module, wanted):
        cause = f"{wanted!r} of {reference.text.partition('::')[0]} is not a function of an app"
        raise ProgramError(
            f"{cause}; what can be run:{there}" if there else cause, fix="Decorate it with `@app.function()`."
        )
    raise ProgramError(
        f"{reference.text.partition('::')[0]} has no {wanted!r}; what can be run:{there or ' nothing'}",
        fix=f"Did you mean {close[0]}?" if close else "Name one of these.",
    )


def _of_app(entries: Sequence[Entry], app: App, reference: Reference) -> Entry:
    """The one thing of an app that can be run."""
    own = [entry for entry in entries if entry.app is app and not entry.is_web]
    best = [entry for entry in own if entry.rank == min(each.rank for each in own)]
    if len(best) == 1:
        return best[0]
    raise UsageError(
        f"{reference.text} has {'several things' if best else 'nothing'} to run:\n{_listed(best or entries)}",
        fix=f"Say which, e.g. `squall run {reference.with_target((best or entries)[0].name)}`." if entries else "",
    )


def _spellings(entry: Entry, owners: Mapping[str, App]) -> tuple[str, ...]:
    """An app's function may be named with and without the app's variable."""
    if entry.rank == VARIANT:
        return (entry.name,)
    if entry.rank >= 2:
        return entry.name, entry.name.partition(".")[2]
    own = entry.target.name if isinstance(entry.target, LocalEntrypoint) else ""
    variables = [variable for variable, app in owners.items() if app is entry.app]
    return entry.name, own, f"app.{entry.name}", *(f"{variable}.{entry.name}" for variable in variables)


def _listed(entries: Sequence[Entry]) -> str:
    return "\n".join(f"    {entry.name:<24} {entry.kind}" for entry in entries)


def _what_it_has(module: ModuleType) -> str:
    return "it has an app without functions" if apps(module) else "it has no app"
