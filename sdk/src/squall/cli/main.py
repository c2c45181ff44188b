"""The entry point of `squall`: answers `version` at once, the rest through the commands. Owns signals and exits."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn, Optional

SHOW_CURSOR = b"\r\033[?25h"
VERSION_WORDS = (["version"], ["--version"], ["-V"])


def main() -> NoReturn:
    """Runs the command line of this process and exits with its status."""
    arguments = sys.argv[1:]
    if arguments in VERSION_WORDS:
        from squall import __version__

        sys.stdout.write(f"squall {__version__}\n")
        sys.exit(0)
    status = execute(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `squall app list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def execute(arguments: list[str]) -> int:
    """One command line, from signals to exit status."""
    from squall.cli import server

    _handle_signals()
    try:
        server.start_early(arguments)  # before anything else is imported: it takes longest
        return _dispatch(arguments)
    except BrokenPipeError:
        return 1
    except BaseException as error:  # noqa: BLE001 - the last place: everything becomes a message and a status
        from squall.cli import failure

        return failure.report(error)
    finally:
        server.kill_all()


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["run"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        # Everything after the program belongs to the program. Not importing typer saves 100 ms, on the way to the first
        # result of everybody's first command.
        from squall.cli.run import RunOptions, run

        return run(arguments[1], arguments[2:], RunOptions())
    from squall.cli.commands import dispatch

    return dispatch(arguments)


def _handle_signals() -> None:
    """SIGTERM stops like Ctrl-C. A second Ctrl-C does not wait for anything."""
    from squall.cli import server

    interrupted: list[int] = []

    def on_signal(number: int, frame: Optional[FrameType]) -> None:
        if server.lost():
            raise server.Lost
        if interrupted:
            server.kill_all()
            if sys.__stderr__ is not None and sys.__stderr__.isatty():
                os.write(sys.__stderr__.fileno(), SHOW_CURSOR)
            os._exit(128 + number)
        interrupted.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        from squall.cli import failure

        raise failure.Terminated

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)


if __name__ == "__main__":
    main()
