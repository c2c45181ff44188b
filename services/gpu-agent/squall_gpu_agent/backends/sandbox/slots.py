"""The agent's side of the launcher: ask for slots, hear how they end, take away what is left of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from squall_gpu_agent.backend import OnCommandEnd
from squall_gpu_agent.backends.control import Control, ControlClosed
from squall_gpu_agent.backends.sandbox.words import FromLauncher, SlotPlan, ToLauncher
from squall_gpu_agent.backends.warden_link import SpawnFailed, reap
from squall_isolation.cgroups import Group
from squall_runner.frames import Frame
from squall_service.telemetry import log

END_TIMEOUT_S = 10.0
TAKEN_TIMEOUT_S = 60.0
TAKEN_POLL_S = 0.25
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup")
"""In the order in which a fork enters them; a pid namespace before it."""


class Slot:
    """Namespaces, a root, limits: everything of a container but its program."""

    def __init__(self, plan: SlotPlan, group: Group, folder: Path, launcher: LauncherLink) -> None:
        self.plan = plan
        self.launcher = launcher
        """Whose it is: the backend's own may be another by now, and knows nothing of it."""
        self.group = group
        self.memory_mib: int | None = None
        """Its limit, for words about it."""
        self.folder = folder
        """Its writable layer, as the agent reaches it."""
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[int] = loop.create_future()
        """The host pid of its program, or of its first process if it has none. Raises `SpawnFailed`."""
        self.ended: asyncio.Future[int | None] = loop.create_future()
        """Nothing of it runs any more; the wait status of its program, if somebody saw it."""
        self.init = 0
        self.released = False
        self.removed = False
        """Its disk and groups are being taken away."""
        self.on_removed: list[Callable[[], None]] = []
        """What else is to be taken away when it is gone; called in a thread."""
        self.ready: asyncio.Future[None] = loop.create_future()
        """Made, and with its network. Raises `SpawnFailed`."""
        self.ready.add_done_callback(_seen)
        self.made.add_done_callback(_seen)

    async def until_made(self) -> int:
        """See `made`. Whoever gives up waiting leaves it to be made: the launcher's word on it is still to come."""
        return await asyncio.shield(self.made)

    async def until_ready(self) -> None:
        """See `ready`, and `until_made`."""
        await asyncio.shield(self.ready)

    @property
    def incoming(self) -> Path:
        """Folder for payloads on their way in; the slot does not see them."""
        return self.taken

    @property
    def name(self) -> str:
        """Its id."""
        return self.plan.slot

    @property
    def scratch(self) -> Path:
        """Folder of the payloads, as the agent reaches it."""
        return self.folder / "scratch"

    @property
    def taken(self) -> Path:
        """Payloads that the agent has taken over; the slot does not see them."""
        return self.folder / "taken"

    def namespaces(self) -> list[int]:
        """Descriptors of its namespaces, the caller's to close. Raises `OSError` when it has ended."""
        opened: list[int] = []
        try:
            for kind in NAMESPACES:
                path = f"/proc/{self.init}/ns/{kind}"
                opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise
        return opened


class LauncherLink:
    """One launcher process."""

    module = "squall_gpu_agent.backends.sandbox.launcher"

    def __init__(self, stage: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START.format(self.module), str(theirs.fileno()), str(stage)],
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C at the agent's terminal is the agent's business
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
                cwd="/",
            )
        self._tickets = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Frame]] = {}
        self._slots: dict[str, Slot] = {}
        self._commands: dict[int, OnCommandEnd] = {}
        self._control = Control(ours, self._on_frame, self._on_closed)
        self._loop = asyncio.get_running_loop()
        self.alive = True

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def seen(self, path: str) -> Path:
        """A path of the launcher's mount namespace, as this process can open it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def make(self, plan: SlotPlan, group: Group, descriptors: Sequence[int] = ()) -> Slot:
        """Begin to make a slot; with `run` in the plan, `descriptors` are its socket, stdout, stderr.

        Raises `OSError`; then there is none.
        """
        slot = Slot(plan, group, self.seen(plan.folder), self)
        self._slots[plan.slot] = slot
        try:
            self._control.send(ToLauncher.MAKE, plan.as_meta(), descriptors)
        except ControlClosed:
            self._lose(slot)
        except OSError:
            del self._slots[plan.slot]
            raise
        return slot

    def kill(self, slot: Slot) -> None:
        """SIGKILL to everything in it."""
        self._tell(ToLauncher.KILL, {"slot": slot.name})

    async def place(self, slot: Slot, template: Slot) -> int:
        """The host pid of what a template has forked into a slot, checked and counted. Raises `SpawnFailed`."""
        ticket = next(self._tickets)
        answer = self._answers[ticket] = self._loop.create_future()
        try:
            meta = {"ticket": ticket, "slot": slot.name, "template": template.name}
            self._control.send(ToLauncher.PLACE, meta)
            found = await answer
        except ControlClosed as error:
            raise SpawnFailed(_LOST) from error
        finally:
            self._answers.pop(ticket, None)
        if not found.meta["pid"]:
            raise SpawnFailed(str(found.meta["message"]))
        return int(found.meta["pid"])

    async def enter(self, slot: Slot, words: Mapping[str, Any], outputs: Sequence[int], on_end: OnCommandEnd) -> int:
        """Run a command in a slot; its host pid. `outputs`: its stdout and stderr. Raises `SpawnFailed`."""
        ticket = next(self._tickets)
        answer = self._answers[ticket] = self._loop.create_future()
        self._commands[ticket] = on_end
        try:
            with written(words) as file:
                self._control.send(ToLauncher.ENTER, {"ticket": ticket, "slot": slot.name}, [file, *outputs])
            found = await answer
        except ControlClosed as error:
            self._commands.pop(ticket, None)
            raise SpawnFailed(_LOST) from error
        finally:
            self._answers.pop(ticket, None)
        if not found.meta["pid"] or found.meta["message"]:
            self._commands.pop(ticket, None)
            raise SpawnFailed(str(found.meta["message"]))
        return int(found.meta["pid"])

    def release(self, slot: Slot) -> None:
        """Let go of its disk and its groups, once it has ended and what the agent took over from it has been read."""
        if not slot.released:
            slot.released = True
            slot.ended.add_done_callback(lambda _: self._remove(slot, self._loop.time() + TAKEN_TIMEOUT_S))

    def _remove(self, slot: Slot, until: float) -> None:
        if self.alive and self._loop.time() < until and _holds_payloads(slot.taken):
            self._loop.call_later(TAKEN_POLL_S, self._remove, slot, until)
            return
        self._slots.pop(slot.name, None)
        slot.removed = True
        self._tell(ToLauncher.REMOVE, {"slot": slot.name})
        self._loop.run_in_executor(None, _take_away, slot)

    async def close(self) -> None:
        """Kill everything that it started, and itself."""
        self._control.close()
        try:
            await asyncio.to_thread(self._process.wait, END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        self._on_closed()

    def _tell(self, kind: int, meta: dict[str, str]) -> None:
        try:
            self._control.send(kind, meta)
        except ControlClosed:
            pass  # then everything is being killed anyway

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind in (FromLauncher.PLACED, FromLauncher.ENTERED):
            answer = self._answers.get(int(frame.meta["ticket"]))
            if answer is not None and not answer.done():
                answer.set_result(frame)
            elif frame.kind == FromLauncher.ENTERED:
                _kill_session(int(frame.meta["pid"]))  # whoever asked for the command has gone meanwhile
            return
        if frame.kind == FromLauncher.LEFT:
            on_end = self._commands.pop(int(frame.meta["ticket"]), None)
            if on_end is not None:
                on_end(frame.meta["status"])
            return
        slot = self._slots.get(str(frame.meta["slot"]))
        if slot is None:
            return
        match frame.kind:
            case FromLauncher.MADE:
                slot.init = int(frame.meta["init"])
                slot.made.set_result(int(frame.meta["pid"]) or slot.init)
            case FromLauncher.NOT_MADE:
                self._lose(slot, str(frame.meta["message"]))
            case FromLauncher.ENDED:
                slot.ended.set_result(frame.meta["status"])
            case _:
                pass

    def _lose(self, slot: Slot, message: str = "") -> None:
        if not slot.made.done():
            slot.made.set_exception(SpawnFailed(message or _LOST))
        if not slot.ended.done():
            slot.ended.set_result(None)

    def _on_closed(self) -> None:
        self.alive = False
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ControlClosed())
        for slot in self._slots.values():
            self._lose(slot)
        while self._commands:
            self._commands.popitem()[1](None)
        reap(self._process)


@contextmanager
def written(words: Mapping[str, Any]) -> Iterator[int]:
    """A descriptor of a file in memory, for what is too long or too secret for a control socket's frames."""
    file = os.memfd_create("squall-words")
    try:
        with os.fdopen(os.dup(file), "wb") as writing:
            writing.write(json.dumps(words).encode())
        yield file
    finally:
        os.close(file)


def _holds_payloads(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _take_away(slot: Slot) -> None:
    for remove in (*slot.on_removed, slot.group.remove):
        try:
            remove()
        except Exception as error:  # noqa: BLE001  # the rest goes all the same
            log.warning("slot_not_removed", slot=slot.name, reason=str(error) or type(error).__name__)
    try:
        os.rmdir(slot.plan.folder)
    except OSError:
        pass  # the next start of the agent tries again


def _kill_session(pid: int) -> None:
    if pid > 1:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself


def _seen(made: asyncio.Future[Any]) -> None:
    """An error that nobody waits for any more is no news."""
    if not made.cancelled():
        made.exception()


_LOST = "the agent's launcher process has ended; the next start makes a new one"
_START = "from {} import main; main()"
