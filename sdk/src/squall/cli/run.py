"""`squall run`: loads a program, runs one function of it with its app, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from squall.cli import entries, failure, program, screen, server
from squall.cli.options import HelpWanted, Options
from squall.cli.reference import parse
from squall.errors import InvalidError, UsageError


@dataclass(frozen=True)
class RunOptions:
    """The options before the program."""

    name: Optional[str] = None
    quiet: bool = False
    detach: bool = False
    write_result: Optional[Path] = None
    as_json: bool = False
    interactive: bool = False
    environment: Optional[str] = None
    timestamps: bool = False


@dataclass(frozen=True)
class _Job:
    """What is run, with what."""

    entry: entries.Entry
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: RunOptions


def run(
    text: str, arguments: Sequence[str], options: RunOptions, *, as_module: bool = False, wants_help: bool = False
) -> int:
    """Runs what `text` points at; the exit status. Raises whatever goes wrong."""
    reference = parse(text, as_module)
    _check(options)
    entry = entries.choose(program.load(reference), reference)
    takes = entry.options()
    if wants_help:
        return _help(reference.with_target(entry.name), entry, takes)
    try:
        args, kwargs = takes.parse(arguments)
    except HelpWanted:
        return _help(reference.with_target(entry.name), entry, takes)
    if entry.is_generator:
        raise InvalidError(
            f"{entry.name} is a generator: its items have nowhere to go",
            fix="Iterate over `.remote_gen()` in a function decorated with `@app.local_entrypoint()`.",
        )
    return _run(_Job(entry, args, kwargs, options))


def _check(options: RunOptions) -> None:
    """Options that say opposite things, or want what is not there."""
    if options.detach and (options.as_json or options.write_result or options.interactive):
        raise UsageError(
            "--detach ends before there is a result",
            fix="Leave out --json, --write-result and --interactive; read it later with `squall call get`.",
        )
    if options.interactive and not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("--interactive needs a terminal", fix="Run it in one, or leave the option out.")
    if options.detach:
        server.must_outlive("--detach")


def _run(job: _Job) -> int:
    options, stdout = job.options, sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if options.as_json else contextlib.nullcontext():
        status, result = _run_app(job)
    if status == 0 and options.write_result is not None:
        _write(options.write_result, result)
    if status == 0 and options.as_json:
        stdout.write(_as_json(result, job.entry.name) + "\n")
    return status


def _run_app(job: _Job) -> tuple[int, Any]:
    """(exit status, result)."""
    options, app = job.options, job.entry.app
    shown = screen.shown(quiet=options.quiet, timestamps=options.timestamps, plain=options.interactive)
    with shown as out, server.for_run(out.doing) as session:
        environment = options.environment or session.environment
        with app.run(name=options.name, detach=options.detach, environment_name=environment):
            interrupted, result = _call(job)
            if options.interactive:
                _prompt(job, result, out)
    if interrupted:
        return failure.EXIT_INTERRUPTED, None
    return 0, result


def _prompt(job: _Job, result: Any, out: screen.Screen) -> None:
    """A Python prompt while the app still runs: its functions can be called with `.remote()`."""
    import code

    out.doing("")
    module = sys.modules[job.entry.raw.__module__]
    names = {**vars(module), "result": result}
    told = f"The app runs; the names of {module.__name__} and `result` are here. Ctrl-D ends it."
    code.interact(banner=told, local=names, exitmsg="")


def _as_json(result: Any, name: str) -> str:
    import json

    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(
            f"what {name} returned cannot be written as JSON: {error}",
            fix="Return plain data, or use --write-result with text or bytes.",
        ) from None


def _call(job: _Job) -> tuple[bool, Any]:
    """(interrupted while detached, result)."""
    try:
        if job.entry.is_local:
            return False, _run_here(job)
        handle = job.entry.handle(job.kwargs)
        if not job.options.detach:
            return False, handle.remote(*job.args, **job.kwargs)
        call = handle.spawn(*job.args, **job.kwargs)
        sys.stdout.write(f"{call.object_id}\n")
        return False, None
    except KeyboardInterrupt:
        if job.options.detach:
            return True, None
        raise


def _run_here(job: _Job) -> Any:
    result = job.entry.raw(*job.args, **job.kwargs)
    if not inspect.iscoroutine(result):
        return result
    import asyncio

    return asyncio.run(result)


def _write(path: Path, result: Any) -> None:
    if isinstance(result, str):
        path.write_text(result)
    elif isinstance(result, bytes):
        path.write_bytes(result)
    else:
        raise InvalidError(
            f"--write-result needs a str or bytes, the function returned {type(result).__name__}",
            fix="Return text or bytes, or leave the option out.",
        )


def _help(reference: str, entry: entries.Entry, takes: Options) -> int:
    lines = [f"Usage: squall run {reference} [OPTIONS]", "", f"Runs the {entry.kind} {entry.name}."]
    rows = takes.help()
    if rows:
        width = max(len(shown) for shown, _ in rows)
        lines += ["", "Options:", *(f"  {shown:<{width}}  {remark}" for shown, remark in rows)]
    elif takes.raw:
        lines += ["", "It takes its arguments as they are."]
    else:
        lines += ["", "It takes no options."]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
