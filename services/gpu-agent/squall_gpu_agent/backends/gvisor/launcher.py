"""The launcher of gVisor's slots: the sandbox launcher, whose slots have runsc in them instead of a program.

Runs as its own process, as sandbox/launcher.py does, and does nothing else with the rights of root than that.
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any, NoReturn

from squall_gpu_agent.backends.gvisor import first
from squall_gpu_agent.backends.sandbox import launcher
from squall_gpu_agent.backends.sandbox.launcher import Slot
from squall_gpu_agent.backends.sandbox.words import FromLauncher, ToLauncher
from squall_runner.frames import Frame


class GvisorLauncher(launcher.Launcher):
    """Passes orders on to the first processes, which run runsc."""

    live = staticmethod(first.live)

    def __init__(self, sock: socket.socket, stage: str) -> None:
        super().__init__(sock, stage)
        self._commands: dict[int, str] = {}
        """Slots of commands whose end is not known yet, by ticket."""

    def on_frame(self, frame: Frame) -> None:
        """See `StandingParent.on_frame`."""
        if frame.kind == ToLauncher.START:
            descriptors = self.take_descriptors(4)
            slot = self._slots.get(frame.meta["slot"])
            try:
                self._order(slot, {}, descriptors)
            except OSError as error:
                self._started(frame.meta["slot"], 0, str(error))
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        else:
            super().on_frame(frame)

    def _enter(self, ticket: int, slot: Slot | None, descriptors: list[int]) -> None:
        words, *outputs = descriptors
        self._order(slot, {"ticket": ticket}, [*outputs, words])
        assert slot is not None
        self._commands[ticket] = slot.plan.slot

    def _order(self, slot: Slot | None, order: dict[str, Any], descriptors: list[int]) -> None:
        if slot is None or not slot.init:
            raise OSError(0, "the container has ended")
        passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        slot.told.sendmsg([json.dumps(order).encode()], [passed])

    def _hear(self, slot: Slot, said: dict[str, Any], pid: int) -> None:
        if "ticket" in said and said["ticket"] is not None:
            self._on_command_said(said, pid)
        elif slot.init and "error" in said:
            self._started(slot.plan.slot, 0, str(said["error"]))
        elif said.get("who") == "program":
            slot.pid = pid
            self._started(slot.plan.slot, pid, "")
        else:
            super()._hear(slot, said, pid)

    def _on_command_said(self, said: dict[str, Any], pid: int) -> None:
        ticket = int(said["ticket"])
        if "status" in said:
            self._commands.pop(ticket, None)
            self.send(FromLauncher.LEFT, {"ticket": ticket, "status": int(said["status"])})
        elif said.get("who") == "command":
            self.send(FromLauncher.ENTERED, {"ticket": ticket, "pid": pid, "message": ""})
        else:
            self._commands.pop(ticket, None)
            self.send(FromLauncher.ENTERED, {"ticket": ticket, "pid": 0, "message": str(said.get("error", ""))})

    def _on_gone(self, slot: Slot) -> None:
        """Who would have told of its commands is gone as well."""
        for ticket in [ticket for ticket, name in self._commands.items() if name == slot.plan.slot]:
            del self._commands[ticket]
            self.send(FromLauncher.ENTERED, {"ticket": ticket, "pid": 0, "message": "the container has ended"})
            self.send(FromLauncher.LEFT, {"ticket": ticket, "status": None})
        super()._on_gone(slot)

    def _started(self, name: str, pid: int, message: str) -> None:
        self.send(FromLauncher.STARTED, {"slot": name, "pid": pid, "message": message})


def main() -> NoReturn:
    """Entry of the process."""
    launcher.main(GvisorLauncher)
