"""Sandboxes, which squall does not have: the names can be imported, and say so when they are used."""

from __future__ import annotations

from squall.unimplemented import TOP_LEVEL, Missing

INSTEAD = TOP_LEVEL["Sandbox"]

Sandbox = Missing("squall.Sandbox", INSTEAD)
SandboxSnapshot = Missing("squall.SandboxSnapshot", INSTEAD)
ContainerProcess = Missing("squall.container_process.ContainerProcess", INSTEAD)
StreamReader = Missing("squall.io_streams.StreamReader", INSTEAD)
StreamWriter = Missing("squall.io_streams.StreamWriter", INSTEAD)
StreamType = Missing("squall.stream_type.StreamType", INSTEAD)
