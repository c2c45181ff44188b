"""The root of a Debian that has apt, from the archive that this machine's own apt uses, by debootstrap.

For bases of this machine (host_base.py) whose images install packages of the system. Needs root, and a machine that is
a Debian or one of its relatives itself: its Python must run in there.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from squall.errors import ImageBuildError

TIMEOUT_S = 1200
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INCLUDED = "ca-certificates"
SAID_LINES = 12
ELSEWHERE = (
    "or let the builder take bases from a registry that has them (SQUALL_BUILDER_DEBIAN_SLIM), or register one: "
    "`squall-images base add` (docs/explanation/images.md)."
)
# Its own mounts: those of debootstrap end with it. Its own pids: whatever it has started does too.
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child")


def make(root: Path) -> None:
    """Fill a folder that does not exist yet. Blocks for half a minute or more. Raises `ImageBuildError`."""
    tool = shutil.which("debootstrap", path=PATH)
    if tool is None:
        raise ImageBuildError(
            "the image needs apt, and debootstrap, which makes a base that has it, is not on the builder's machine",
            fix="There: `apt-get install debootstrap`, or, for containers that may be plain processes of that machine, "
            f"the packages themselves; {ELSEWHERE}",
        )
    suite, archive = _archive()
    options = ("--variant=minbase", "--force-check-gpg", f"--include={INCLUDED}")
    command = [*_APART, tool, *options, suite, str(root), archive]
    try:  # with this process's own variables: those of proxies are among them
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageBuildError(f"debootstrap of {suite} did not end well: {error}") from error
    if done.returncode:
        said = [*done.stdout.splitlines(), *done.stderr.splitlines()][-SAID_LINES:]
        raise ImageBuildError(
            f"debootstrap could not make a base with apt of {suite} from {archive}",
            fix=f"Its output shows why; {ELSEWHERE}",
            step="base",
            exit_code=done.returncode,
            output="\n".join(said),
        )
    for archives in (root / "var/cache/apt/archives").glob("*.deb"):
        archives.unlink()


def _archive() -> tuple[str, str]:
    """Code name of this machine's release, and where its apt has it from. Raises `ImageBuildError`."""
    told = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    values = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    suite = values.get("VERSION_CODENAME", "").strip('"')
    asked = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI) $(COMPONENT)"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        lines = []
    for line in lines:
        codename, archive, component = (*line.split(" "), "", "")[:3]
        if suite and (codename, component) == (suite, "main"):
            return suite, archive
    raise ImageBuildError(
        "the image needs apt, and this machine's apt names no archive of its release to make a base from",
        fix=f"Run `apt-get update` on the builder's machine; {ELSEWHERE}",
    )
