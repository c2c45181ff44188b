"""Fail points: named steps of a call at which a test lets a service die, stop, wait or fail; and conditions under which
a test lets it live for a while, a wrong clock or a full disk. Off unless asked for.

Owns the table of steps and what can be made to happen there. A step is one line in a service,
`failpoint("agent.recorded")`; while nothing is armed that line is one call and one `if` (about 40 ns). The state is of
the process, not of a service: what it stands for, a process that dies, is too.
"""

from __future__ import annotations

import asyncio
import difflib
import errno
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from squall_service.clock import SystemClock
from squall_service.logs import log
from squall_service.settings import ServiceSettings, SettingsError, settings_config

POINTS: Mapping[str, str] = {
    "gateway.admitted": "an input is admitted, nothing of it is stored",
    "gateway.stored": "JOURNAL has the input, the gateway has done nothing with the acknowledgement",
    "gateway.accepted": "the input is accepted, its caller has not been told",
    "gateway.cancel_recorded": "`cancelled` is recorded, no agent has been told",
    "gateway.cancel_told": "agents have been told of a cancel, WORK still has the input",
    "gateway.webhook_stored": "a delivery is stored, its result is not acked",
    "gateway.webhook_sent": "a webhook was sent, what came of it is not written down",
    "autoscaler.desired": "a decision is stored, its own log and traces are not",
    "scheduler.claimed": "a claim is created, the scheduler has not taken note",
    "scheduler.requeued": "a lost input is back in WORK",
    "scheduler.expired": "`expired` is recorded, nobody has been told, WORK still has the input",
    "agent.claim_accepted": "room is reserved for a claim, nothing is started",
    "agent.container_ready": "a container is ready, its claim does not say so yet",
    "agent.delivered": "the queue has handed an input to the agent",
    "agent.history_read": "it is known whether the input may run; it has not started",
    "agent.handed_over": "the input is on its way to the runner",
    "agent.ended": "user code has ended, nothing is stored",
    "agent.blob_stored": "a large result is in the blob store, its record is not written",
    "agent.recorded": "the result is recorded, nobody has been told",
    "agent.replied": "whoever waits has been told, the queue has not",
    "agent.acked": "the queue has been told; the end of a call",
    "agent.counted": "a failed attempt is counted in ATTEMPTS, the input is not given back",
}
CLOCK, DISK = "clock", "disk"
CONDITIONS: Mapping[str, str] = {
    CLOCK: "`jump:SECONDS`: the wall clock is so far ahead (behind, if negative)",
    DISK: "`full`: what the agent writes to its disk fails with ENOSPC",
}
"""They hold from when they are armed until something else is, or nothing."""
WRITTEN_OUT_S = 0.02
"""What was written to a socket leaves the process at the end of the turn after next of the event loop."""
MAX_DELAY_S = 3600.0


class Action(Enum):
    """What happens at an armed step."""

    KILL = "kill"
    """SIGKILL to this process."""
    STOP = "stop"
    """SIGSTOP to this process, until somebody sends SIGCONT."""
    DELAY = "delay"
    """`delay:0.5`: the whole process stands still for so many seconds."""
    ERROR = "error"
    """An exception that no code expects."""
    JUMP = "jump"
    """Of the condition `clock`."""
    FULL = "full"
    """Of the condition `disk`."""


OF_STEPS = (Action.KILL, Action.STOP, Action.DELAY, Action.ERROR)
OF_CONDITION = {CLOCK: Action.JUMP, DISK: Action.FULL}


class InjectedFault(Exception):
    """What `error` raises: stands for a bug of ours, so nothing catches it by name."""


class FailPointSettings(ServiceSettings):
    """Fail points of a service process. For tests of the platform only."""

    model_config = settings_config("TESTING")

    failpoints: str = ""
    """Steps of a call at which this process fails: `STEP=ACTION[@N]`, several separated by semicolons. ACTION is
    `kill`, `stop`, `delay:SECONDS` or `error`; it happens once, the Nth time that the step is reached. Also
    `clock=jump:SECONDS` and `disk=full`."""
    failpoints_dir: str = ""
    """Folder from which a process reads fail points when it gets SIGUSR2: the file named like its process id."""
    shared_folder: str = ""
    """Folder of an agent's machine that every sandbox sees under the same name, writable: there user code tells the
    harness what it did. It is a way out of the sandbox."""


@dataclass(slots=True)
class Armed:
    """One step with what will happen there."""

    action: Action
    delay_s: float
    countdown: int


def parse(text: str) -> dict[str, Armed]:
    """`agent.recorded=kill@3; gateway.stored=delay:0.5`. SettingsError names what is wrong."""
    found: dict[str, Armed] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        point, equals, what = part.partition("=")
        if not equals:
            raise SettingsError(f"fail point {part!r} is not of the form STEP=ACTION[@N]")
        known = [*POINTS, *CONDITIONS]
        if point not in known:
            near = difflib.get_close_matches(point, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise SettingsError(f"unknown fail point {point!r}{hint}")
        found[point] = _parse_action(point, what)
    return found


def _parse_action(point: str, what: str) -> Armed:
    what, at, number = what.partition("@")
    name, colon, seconds = what.partition(":")
    possible = [OF_CONDITION[point]] if point in CONDITIONS else OF_STEPS
    action = next((each for each in possible if each.value == name), None)
    if action is None:
        known = ", ".join(each.value for each in possible)
        raise SettingsError(f"fail point {point}: unknown action {name!r}; there are {known}")
    if at and (point in CONDITIONS or not (number.isdecimal() and int(number))):
        raise SettingsError(f"fail point {point}: {number!r} is not a count (1 = the first time)")
    if bool(colon) != (action in (Action.DELAY, Action.JUMP)):
        raise SettingsError(
            f"fail point {point}: `delay` and `jump` take seconds (delay:0.5), the other actions take nothing"
        )
    try:
        delay_s = float(seconds or 0)
    except ValueError:
        delay_s = math.nan
    least = -MAX_DELAY_S if action is Action.JUMP else 0.0
    if not least <= delay_s <= MAX_DELAY_S:
        raise SettingsError(f"fail point {point}: {seconds!r} is not a {name} of at most {MAX_DELAY_S:g} s")
    return Armed(action, delay_s, int(number or 1))


# ---------------------------------------------------------------------- in services

_armed: dict[str, Armed] = {}
_disk_is_full = False


def failpoint(point: str) -> None:
    """This step is reached."""
    if _armed:
        _reached(point)


def failpoint_disk() -> None:
    """Something is about to be written to the disk."""
    if _disk_is_full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failpoint_written(point: str, then: Callable[[], None] | None = None) -> None:
    """This step is reached once what was written before has left the process; then comes `then`."""
    if point in _armed:
        asyncio.get_running_loop().call_later(WRITTEN_OUT_S, _reached, point, then)
    elif then is not None:
        then()


def _reached(point: str, then: Callable[[], None] | None = None) -> None:
    armed = _armed.get(point)
    if armed is not None:
        armed.countdown -= 1
        if not armed.countdown:
            del _armed[point]
            _act(point, armed)
    if then is not None:
        then()


def _act(point: str, armed: Armed) -> None:
    log.error("failpoint_reached", point=point, action=armed.action.value)
    match armed.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.DELAY:
            time.sleep(armed.delay_s)
        case Action.ERROR:
            raise InjectedFault(f"fail point {point}")
        case Action.JUMP | Action.FULL:
            raise AssertionError("conditions are not reached")


# ---------------------------------------------------------------------- arming


def arm(text: str) -> None:
    """Replace what is armed. SettingsError names what is wrong, and nothing changes."""
    global _disk_is_full  # noqa: PLW0603 — the state is of the process, see above
    wanted = parse(text)
    clock, disk = wanted.pop(CLOCK, None), wanted.pop(DISK, None)
    _armed.clear()
    _armed.update(wanted)
    SystemClock.offset_s = 0.0 if clock is None else clock.delay_s
    _disk_is_full = disk is not None


def enable(settings: FailPointSettings) -> None:
    """Arm what the settings say; listen for more if they say so. For the running event loop's process."""
    arm(settings.failpoints)
    if settings.failpoints:
        log.error("failpoints_armed", points=settings.failpoints)
    if settings.failpoints_dir:
        log.error("failpoints_can_be_armed", folder=settings.failpoints_dir)
        file = Path(settings.failpoints_dir) / str(os.getpid())
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _arm_from, file)


def _arm_from(file: Path) -> None:
    """Replace what is armed by what the file says. It is removed: whoever wrote it knows then that it was read."""
    try:
        text = file.read_text()
        arm(text)
        log.error("failpoints_armed", points=text)
    except (OSError, SettingsError) as error:
        log.error("failpoints_refused", file=str(file), error=error)
        file.rename(file.with_suffix(".refused"))
        return
    file.unlink()
