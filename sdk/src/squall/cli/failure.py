"""How a failure looks: `Error [code]: cause`, `Fix: what to do`, a traceback of user code only, and the exit status.

The one place of the CLI that turns exceptions into text.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Optional

from squall.cli.program import UserCodeFailed, shorten
from squall.errors import SquallError, UsageError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
FULL_TRACEBACK = "SQUALL_TRACEBACK"
"""Set to 1: tracebacks keep the frames of squall and of Python's import system."""

_OWN = str(Path(__file__).resolve().parents[1])
_TRACEBACK = "Traceback (most recent call last):"
_TYPER = f"{os.sep}site-packages{os.sep}typer{os.sep}"
_HIDDEN = ("<frozen importlib", "<frozen runpy", str(Path(os.__file__).parent / "importlib"))


class Terminated(BaseException):
    """SIGTERM arrived: stop like Ctrl-C does, with its own exit status."""


def report(error: BaseException, out: Optional[IO[str]] = None) -> int:
    """Prints what went wrong and says with which status to exit."""
    out = out or sys.stderr
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, Terminated):
        return EXIT_TERMINATED
    if isinstance(error, SystemExit):
        return _status_of_exit(error, out)
    if isinstance(error, UserCodeFailed):
        return _report_import(error, out)
    if isinstance(error, SquallError):
        print_error(error.code, error.message, error.hint, out)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    if not user_frames(error.__traceback__) and not remote_traceback(error):
        return _report_bug(error, out)
    out.write(format_user_error(error))
    if isinstance(error, ModuleNotFoundError) and remote_traceback(error):
        print_error("program", f"the container has no module {error.name!r}", _how_to_add(error.name or ""), out)
    out.flush()
    return EXIT_FAILED


def _how_to_add(module: str) -> str:
    top = module.partition(".")[0]
    if (Path.cwd() / f"{top}.py").exists() or (Path.cwd() / top).is_dir():
        return f'Add your own code to the image: `image.add_local_python_source("{top}")`.'
    return f'Add its package to the image of the function, e.g. `squall.Image.debian_slim().uv_pip_install("{top}")`.'


def print_error(code: str, cause: str, fix: str, out: IO[str]) -> None:
    """The three parts of every error."""
    red, bold, plain = ("\033[31m", "\033[1m", "\033[0m") if _coloured(out) else ("", "", "")
    out.write(f"{red}{bold}Error [{code}]{plain}: {cause}\n")
    if fix:
        out.write(f"{bold}Fix{plain}: {fix}\n")
    out.flush()


def format_user_error(error: BaseException) -> str:
    """The traceback of an exception, without frames that are not the user's."""
    if os.environ.get(FULL_TRACEBACK, "") not in ("", "0"):
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    remote = remote_traceback(error)
    if remote:
        return _joined(error, remote)
    formatted = traceback.TracebackException(type(error), error, error.__traceback__)
    _trim(formatted)
    return "".join(formatted.format())


def remote_traceback(error: BaseException) -> str:
    """What the container said about an exception that came from there; empty for any other."""
    cause = error.__cause__
    is_remote = cause is not None and type(cause).__name__ == "RemoteTraceback" and bool(cause.args)
    return str(cause.args[0]).rstrip() if cause is not None and is_remote else ""


def _joined(error: BaseException, remote: str) -> str:
    """One traceback: the lines that led to the call here, then those in the container."""
    frames = user_frames(error.__traceback__)
    for frame in frames:
        frame.filename = shorten(frame.filename)
    here = "".join(traceback.StackSummary.from_list(frames).format())
    first, _, rest = remote.partition("\n")
    if first != _TRACEBACK or _TRACEBACK in rest:  # a chain of exceptions: leave it as it is
        rest = "\n".join(f"  {line}" for line in remote.splitlines()) + f"\n{type(error).__name__}: {error}"
    return f"{_TRACEBACK}\n{here}  In the container:\n{rest}\n"


def _trim(error: traceback.TracebackException, seen: Optional[list[int]] = None) -> None:
    seen = [] if seen is None else seen
    if id(error) in seen:
        return
    seen.append(id(error))
    kept = [frame for frame in error.stack if is_user_frame(frame.filename)]
    for frame in kept:
        frame.filename = shorten(frame.filename)
    error.stack = traceback.StackSummary.from_list(kept)
    for other in (error.__cause__, error.__context__):
        if other is not None:
            _trim(other, seen)


def user_frames(trace: Optional[TracebackType]) -> list[traceback.FrameSummary]:
    """The frames that are the user's own, outermost first."""
    return [frame for frame in traceback.extract_tb(trace) if is_user_frame(frame.filename)]


def is_user_frame(filename: str) -> bool:
    """Whether a frame of that file tells the user something."""
    return not filename.startswith((_OWN, *_HIDDEN)) and _TYPER not in filename


def _report_import(error: UserCodeFailed, out: IO[str]) -> int:
    cause = error.__cause__
    if isinstance(cause, SystemExit):
        return _status_of_exit(cause, out)
    if isinstance(cause, SquallError):
        where = _innermost(cause.__traceback__)
        print_error(cause.code, f"{where}: {cause.message}" if where else cause.message, cause.hint, out)
        return EXIT_FAILED
    assert cause is not None
    out.write(format_user_error(cause))
    fix = "Install the module beside this Python, or import it inside the function (`with image.imports():`)."
    is_missing = isinstance(cause, ModuleNotFoundError)
    if "no known parent package" in str(cause):
        fix, is_missing = "A file of a package is run as a module: `-m package.module`, not by its path.", True
    print_error(
        "program",
        f"{error.what} raised {type(cause).__name__}: {cause}",
        fix if is_missing else "Fix the file at the line above.",
        out,
    )
    return EXIT_FAILED


def _report_bug(error: BaseException, out: IO[str]) -> int:
    """Nothing of the user's was running: everything that helps to find our mistake."""
    out.write("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    print_error("internal", f"{type(error).__name__}: {error}", SquallError.fix, out)
    return EXIT_FAILED


def _innermost(trace: Optional[TracebackType]) -> str:
    """`file:line` of the user's own line that was running."""
    # The __init__ of a dataclass or named tuple is "<string>": nobody can look there.
    frames = [frame for frame in user_frames(trace) if not frame.filename.startswith("<")]
    return f"{shorten(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _status_of_exit(error: SystemExit, out: IO[str]) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    out.write(f"{error.code}\n")
    return EXIT_FAILED


def _coloured(out: IO[str]) -> bool:
    return out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
