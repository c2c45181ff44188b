"""A container as a copy of a template's memory: runsc restores it, then it forks once and is told who it is."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any

from squall_gpu_agent.backends.gvisor.link import GvisorLink
from squall_gpu_agent.backends.process_starter import Ends
from squall_gpu_agent.backends.process_template import ForkFailed
from squall_gpu_agent.backends.sandbox.slots import Slot
from squall_gpu_agent.backends.warden_link import SpawnFailed
from squall_gpu_agent.pipes import Pipes
from squall_runner.frames import BadFrame, Decoder, FromRunner, ToRunner, encode

RESTORE_S = 60.0
"""For 10 GB from a disk that reads 200 MB/s; what takes longer is started plainly."""
WORDS = 600


class Restoring:
    """The ends of one copy that is on its way. What it prints is heard once it is there: until then it is runsc's."""

    def __init__(self) -> None:
        """Raises `OSError`; then nothing of it is open."""
        self._ours, theirs = socket.socketpair()
        self._read: list[tuple[str, int]] = []
        self._theirs = [theirs.detach()]
        try:
            for stream in ("stdout", "stderr"):
                read, write = os.pipe()
                self._read.append((stream, read))
                self._theirs.append(write)
        except OSError:  # too many files are open: not these as well
            self._ours.close()
            self.close()
            raise

    async def restore(self, launcher: GvisorLink, slot: Slot, order: dict[str, Any], within_s: float) -> int:
        """The host pid of what waits for SETUP now. Raises `ForkFailed`."""
        try:
            async with asyncio.timeout(within_s):
                await slot.until_made()
                await slot.until_ready()
                pid = await launcher.start(slot, order, self._theirs)
                self._close_theirs()
                await self._forked(slot.plan.hostname)
                return pid
        except TimeoutError:
            raise ForkFailed(f"it was not restored within {within_s:g} s{self._said()}") from None
        except (SpawnFailed, OSError, BadFrame, ValueError) as error:
            raise ForkFailed(f"{str(error) or type(error).__name__}{self._said()}") from error

    def hand_over(self, ends: Ends, pipes: Pipes) -> None:
        """The agent's ends belong to the container from now on."""
        ends.ours.close()
        ends.ours = self._ours
        for stream, descriptor in self._read:
            pipes.add(stream, descriptor)
        self._read = []

    def close(self) -> None:
        """Of what was not handed over."""
        self._close_theirs()
        if self._read:
            self._ours.close()
        for _, descriptor in self._read:
            os.close(descriptor)
        self._read = []

    async def _forked(self, hostname: str) -> None:
        loop = asyncio.get_running_loop()
        self._ours.setblocking(False)
        await loop.sock_sendall(self._ours, encode(ToRunner.FORK, {"ticket": "", "here": True, "hostname": hostname}))
        decoder = Decoder()
        while True:
            data = await loop.sock_recv(self._ours, 1 << 16)
            if not data:
                raise OSError(0, "it ended")
            match decoder.feed(data):
                case []:
                    continue
                case [frame] if frame.kind == FromRunner.FORKED:
                    return
                case [frame, *_] if frame.kind == FromRunner.FORK_FAILED:
                    raise OSError(0, str(frame.meta.get("message"))[:WORDS])
                case _:
                    raise OSError(0, "it said something else than that it is there")

    def _said(self) -> str:
        """What runsc has printed, as the end of a message."""
        for stream, descriptor in self._read:
            if stream == "stderr":
                os.set_blocking(descriptor, False)
                try:
                    return last_words(os.read(descriptor, 1 << 16))
                except OSError:
                    pass
        return ""

    def _close_theirs(self) -> None:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs = []


def last_words(printed: bytes) -> str:
    """Of a program that went wrong."""
    lines: Sequence[str] = printed.decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1][:WORDS]}" if lines else ""
