"""Where blobs lie in their store: the same rule for gateways and for what shares a folder with one."""

from __future__ import annotations

import hashlib
import re

WORKSPACES = "workspaces"
_PLAIN = re.compile(r"[-_A-Za-z0-9]{1,64}")


def blob_path(sha256: str) -> str:
    """Where a blob lies in its place."""
    return f"{sha256[:2]}/{sha256}"


def workspace_place(workspace: str) -> str:
    """The place of a workspace's blobs, below that of the store: nobody else's are there."""
    name = workspace
    if not _PLAIN.fullmatch(workspace):  # a path is not to be led out of it
        name = "=" + hashlib.sha256(workspace.encode()).hexdigest()[:32]
    return f"{WORKSPACES}/{name}"
