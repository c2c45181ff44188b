"""The errors under the name that programs catch them by: `squall.exception.FunctionTimeoutError` and so on."""

from __future__ import annotations

from typing import Any

from squall.errors import *  # noqa: F403
from squall.errors import Error, TimeoutError
from squall.preemption import simulate_preemption as simulate_preemption

_NEVER_RAISED: dict[str, tuple[type[Exception], str]] = {
    "SandboxTimeoutError": (TimeoutError, "sandboxes"),
    "SandboxTerminatedError": (Error, "sandboxes"),
    "SandboxFilesystemError": (Error, "sandboxes"),
    "ExecTimeoutError": (TimeoutError, "sandboxes"),
    "MountUploadTimeoutError": (TimeoutError, "mounts: local files travel with the code"),
    "VolumeUploadTimeoutError": (TimeoutError, "a limit for uploads to volumes"),
    "InteractiveTimeoutError": (TimeoutError, "interactive runs"),
    "SnapshotCreationError": (Error, "snapshots on request"),
    "LogsFetchError": (Error, "logs in the SDK: `squall logs` shows them"),
    "FilesystemExecutionError": (Error, "sandboxes"),
    "WorkspaceManagementError": (Error, "workspaces to manage: a token belongs to one"),
    "ServerWarning": (UserWarning, "warnings from the server"),
}
"""Names of what squall does not have. They exist, so that `except exception.SandboxTimeoutError:` lets through what was
really raised; nothing ever raises them."""


def __getattr__(name: str) -> Any:
    if name in _NEVER_RAISED:
        base, what = _NEVER_RAISED[name]
    elif name.startswith("SandboxFilesystem") and name.endswith("Error"):
        base, what = __getattr__("SandboxFilesystemError"), "sandboxes"
    else:
        raise AttributeError(f"module 'squall.exception' has no attribute {name!r}")
    doc = f"Never raised: squall does not have {what}."
    globals()[name] = found = type(name, (base,), {"__module__": __name__, "__doc__": doc})
    return found
