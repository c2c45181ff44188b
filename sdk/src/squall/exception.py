"""The errors under the name that programs catch them by: `squall.exception.FunctionTimeoutError` and so on."""

from __future__ import annotations

from typing import NoReturn

from squall.errors import *  # noqa: F403

_OF_WHAT_IS_MISSING = {
    "Sandbox": "sandboxes",
    "ExecTimeoutError": "sandboxes",
    "MountUploadTimeoutError": "mounts: local files travel with the code",
    "VolumeUploadTimeoutError": "a limit for uploads to volumes",
    "InteractiveTimeoutError": "interactive runs",
    "SnapshotCreationError": "memory snapshots",
    "LogsFetchError": "logs in the SDK: `squall logs` shows them",
    "ServerWarning": "warnings from the server",
}


def __getattr__(name: str) -> NoReturn:
    for start, what in _OF_WHAT_IS_MISSING.items():
        if name.startswith(start):
            raise AttributeError(f"there is no {name}, because squall does not have {what}")
    raise AttributeError(f"module 'squall.exception' has no attribute {name!r}")
