"""The template of a function in gVisor: a container that has imported the code, is written to a file, and ends."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

from squall_gpu_agent.backends.gvisor.memory_images import MemoryImage, MemoryImages, NotKept
from squall_gpu_agent.backends.gvisor.restoring import last_words
from squall_gpu_agent.backends.process_template import ProcessTemplate
from squall_gpu_agent.backends.sandbox.template import SandboxTemplate
from squall_gpu_agent.backends.warden_link import SpawnFailed

POLL_S = 0.2
WRITE_S = 300.0
END_S = 20.0


class GvisorTemplate(SandboxTemplate):
    """One that is made once. Afterwards it is its image, and nothing of it runs."""

    image: MemoryImage
    folder: Path
    """What is being written."""
    config: dict[str, Any]
    """What runsc was told of it."""

    @classmethod
    def of(cls, image: MemoryImage) -> GvisorTemplate:
        """One whose memory has been written, and of which nothing else is left."""
        ours, theirs = socket.socketpair()
        theirs.close()
        template = cls(image.key, ours, "", lambda _: None)
        template.close()
        template.image = image
        return template

    def initialised(self) -> None:
        """See `ProcessTemplate.initialised`. No slots are kept: each has a place for an image in it."""
        ProcessTemplate.initialised(self)

    def kill(self) -> None:
        """See `ProcessTemplate.kill`. Its slot is taken away with what it has written, once it has ended."""
        super().kill()
        self.slot.launcher.release(self.slot)

    async def write(self, images: MemoryImages, command: dict[str, object]) -> None:
        """Let runsc write its memory, which ends it. Raises `NotKept`."""
        ended: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        read, write = os.pipe()
        try:
            try:
                await self.slot.launcher.enter(self.slot, command, [write, write], lambda s: _done(ended, s))
            finally:
                os.close(write)
            async with asyncio.timeout(WRITE_S):
                while not ended.done():
                    await asyncio.wait([ended], timeout=POLL_S)
                    if trouble := await asyncio.to_thread(images.trouble, self.folder):
                        raise NotKept(trouble)
            if ended.result() != 0:
                os.set_blocking(read, False)
                said = last_words(_read(read))
                raise NotKept(f"runsc could not write its memory (status {ended.result()}){said}")
            async with asyncio.timeout(END_S):
                await asyncio.shield(self.slot.ended)
        except TimeoutError:
            raise NotKept("its memory was not written in time") from None
        except SpawnFailed as error:
            raise NotKept(f"runsc could not write its memory: {error}") from error
        finally:
            os.close(read)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def _done(ended: asyncio.Future[int | None], status: int | None) -> None:
    if not ended.done():
        ended.set_result(status)
