"""The entry point of the embedded platform: nats-server first, everything else while it gets ready."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from squall.errors import SquallError
from squall_embedded import addresses, announcing, state
from squall_embedded.bus_program import programs
from squall_embedded.settings import EmbeddedSettings, parse


def main() -> int:
    """Runs a platform until it is told to stop; its exit status."""
    parent = os.getppid()
    settings = parse(sys.argv[1:])
    gc.disable()  # hundreds of modules are about to be made, none of them garbage; Platform turns it on again
    try:
        return _run(settings, parent)
    except SquallError as error:
        return announcing.refuse(error)
    finally:
        if settings.ephemeral:
            state.remove_folder(settings.data)


def _run(settings: EmbeddedSettings, parent: int) -> int:
    lock = state.claim_folder(settings.data)
    state.use_scratch(settings.data)
    with addresses.Ports() as ports:
        gateways = [settings.port] + [0] * (settings.gateways - 1)
        listening = tuple(ports.choose(settings.host, port) for port in gateways)
        servers = [(program, program.start()) for program in programs(settings, ports)]
        try:
            from squall_embedded.starting import run_platform

            return run_platform(settings, servers, listening, parent)
        finally:
            for _, process in servers:
                process.kill()
                process.wait()
            state.clear_scratch(settings.data)
            os.close(lock)


def main_and_exit() -> NoReturn:
    """Nothing is left to be done by then: to take thousands of modules apart would cost 100 ms."""
    status = main()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main_and_exit()
