"""What a process of this backend is started with: command, environment, working folder, SETUP frame.

Owns the layout of a container's scratch folder and the variables that containers see. Starts nothing.
"""

from __future__ import annotations

import math
import os
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.spec import FunctionSpec, to_wire
from squall_gpu_agent.backend import CommandFailed, ContainerRequest
from squall_gpu_agent.backends.bundle_view import View
from squall_gpu_agent.backends.sdk_files import SdkFiles
from squall_images.environments import Environment

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# A fork copies the page tables: 20 ms per GB of 4 K pages, next to nothing with huge pages (runtime.md, 1a).
# The last one: torch asks the driver's library for devices, not CUDA, which would not survive a fork.
TEMPLATE_VARIABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "THP_MEM_ALLOC_ENABLE": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
LANG = "C.UTF-8"
NO_DEVICES = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
"""Of templates: what they import must find no device, because a fork cannot share one."""
_BOOT = "import sys; sys.path.append(sys.argv[1]); from squall_runner.__main__ import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where this backend keeps things; all below one data folder."""

    data: Path

    @property
    def containers(self) -> Path:
        """A scratch folder per process."""
        return self.data / "containers"

    @property
    def results(self) -> Path:
        """Payload files that were taken over from containers."""
        return self.data / "results"

    @property
    def home(self) -> Path:
        """HOME of containers: caches of user code survive in it."""
        return self.data / "home"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One process to start, container or template, with everything that it needs found."""

    name: str
    """Id of the container, or the template's key."""
    request: ContainerRequest
    environment: Environment
    sdk: SdkFiles
    view_reason: str | None
    """The file for which the bundle must be shown at its absolute paths; None: not needed."""
    paths: Paths
    path_variable: str

    @property
    def scratch(self) -> Path:
        """Its folder."""
        return self.paths.containers / self.name

    @property
    def declared(self) -> dict[str, str]:
        """Variables that the image and the function declare."""
        return {**self.environment.env, **self.request.env}

    @property
    def home_folder(self) -> str:
        """`/root` as the container sees it."""
        return "/root" if self.view_reason else str(self.scratch / "root")

    @property
    def cwd(self) -> str:
        """The folder that its code starts in."""
        wanted = posixpath.normpath(self.environment.workdir or "/root")
        if self.view_reason or posixpath.commonpath([wanted, "/root"]) != "/root":
            return wanted
        return posixpath.normpath(posixpath.join(self.home_folder, posixpath.relpath(wanted, "/root")))

    @property
    def code_root(self) -> str:
        """Where its modules are imported from."""
        return "/root" if self.view_reason else str(self.request.code_dir / "root")


def prepare_scratch(wanted: Wanted) -> None:
    """Make the scratch folder. Without a view, `root` in it stands for /root: links to the bundle, own new files."""
    for name in ("tmp", "root", "view"):
        (wanted.scratch / name).mkdir(parents=True)
    if wanted.view_reason is None:
        source = wanted.request.code_dir / "root"
        if source.is_dir():
            for entry in os.scandir(source):
                os.symlink(entry.path, wanted.scratch / "root" / entry.name)
        _make_workdir(wanted)


def _make_workdir(wanted: Wanted) -> None:
    """A working folder below /root that the bundle does not bring. Never through a link: the bundle is others' too."""
    home, folder = Path(wanted.home_folder), Path(wanted.cwd)
    if folder.is_relative_to(home) and not any(parent.is_symlink() for parent in [folder, *folder.parents]):
        folder.mkdir(parents=True, exist_ok=True)


def view(wanted: Wanted) -> View | None:
    """The mounts that the process needs."""
    if wanted.view_reason is None:
        return None
    request, environment = wanted.request, wanted.environment
    keep = [
        wanted.paths.data,
        environment.prefix,
        environment.interpreter.parent.parent,
        wanted.sdk.sdk,
        wanted.sdk.picklers,
        request.code_dir,
    ]
    if request.socket_path is not None:
        keep.append(request.socket_path.parent)
    return View(str(request.code_dir), str(wanted.scratch / "view"), [str(path.absolute()) for path in keep])


def command(environment: Environment, sdk: SdkFiles) -> list[str]:
    """-I -S: nothing of the host's, and no time for it. A crash in C code prints the Python stack."""
    return [str(environment.python), "-I", "-S", "-X", "faulthandler", "-c", _BOOT, str(sdk.sdk)]


def shared_variables(wanted: Wanted) -> dict[str, str]:
    """What all containers of a function version see, and so may be forked with."""
    request, environment = wanted.request, wanted.environment
    return {
        "PATH": f"{environment.prefix / 'bin'}:{wanted.path_variable}",
        "HOME": "/root" if wanted.view_reason else str(wanted.paths.home),
        "LANG": LANG,
        "PYTHONPATH": f"{wanted.code_root}:{wanted.sdk.sdk}",  # for what user code starts with sys.executable
        **wanted.declared,
        "SQUALL_CONTAINER": "1",
        "SQUALL_APP_ID": request.app_id,
        "SQUALL_FUNCTION_ID": request.function_id,
        "SQUALL_IMAGE_ID": request.spec.image.id,
    }


def template_variables(wanted: Wanted) -> dict[str, str]:
    """`shared_variables`, held to one thread: a second one would forbid the fork."""
    shared = shared_variables(wanted)
    return {**TEMPLATE_VARIABLES, **shared, **NO_DEVICES, **dict.fromkeys(THREAD_VARIABLES, "1")}


def own_variables(wanted: Wanted) -> dict[str, str]:
    """What is different in each container; set before import in a fresh one, after the fork in a forked one."""
    request = wanted.request
    count = str(thread_count(request.spec))
    declared = wanted.declared
    own = {name: declared.get(name, count) for name in THREAD_VARIABLES}
    own |= {"TMPDIR": declared.get("TMPDIR", str(wanted.scratch / "tmp")), **request.gpu_env}
    own["SQUALL_CONTAINER_ID"] = wanted.name
    if request.socket_path is not None:
        own["SQUALL_SOCKET"] = str(request.socket_path)
    if request.token:
        own["SQUALL_TOKEN"] = request.token
    return own


def command_beside(wanted: Wanted, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Argument vector and variables of a command beside the runner. Raises `CommandFailed` for an unknown program."""
    env = {**shared_variables(wanted), **own_variables(wanted)}
    program = os.path.join(wanted.cwd, words[0]) if "/" in words[0] else shutil.which(words[0], path=env["PATH"])
    if program is None:
        raise CommandFailed(f"{words[0]!r} cannot be started: it is not on the container's PATH")
    return [program, *words[1:]], env


def thread_count(spec: FunctionSpec) -> int:
    """Threads for numeric libraries: the processors that the function asked for."""
    return max(1, math.ceil(spec.resources.cpu_limit or spec.resources.cpu))


def setup(wanted: Wanted, env: Mapping[str, str], *, whole_env: bool, template: bool, forked: bool) -> dict[str, Any]:
    """The SETUP frame; its fields are `squall_runner.settings.Settings`.

    `env` is the whole environment of the process, or what it does not have yet. `forked`: from a template of its own.
    """
    request, spec = wanted.request, wanted.request.spec
    return {
        "module": spec.code.module,
        "qualname": spec.code.qualname,
        "is_class": spec.is_class,
        "methods": [to_wire(method) for method in spec.methods],
        "code_root": wanted.code_root,
        "code_dir": "" if wanted.view_reason else str(request.code_dir),
        "site_packages": [str(wanted.environment.site_packages)],
        "prefix": str(wanted.environment.prefix),
        "picklers": str(wanted.sdk.picklers),
        "cwd": wanted.cwd,
        "scratch": str(wanted.scratch),
        "env": dict(env),
        "whole_env": whole_env,
        "unset": [name for name in TEMPLATE_VARIABLES if forked and name not in wanted.declared],
        "max_inputs": spec.scaling.max_inputs,
        "batch_size": spec.batching.max_batch_size if spec.batching else 0,
        "batch_wait_ms": spec.batching.wait_ms if spec.batching else 0,
        "params": dict(request.params) if request.params is not None else None,
        "template": template,
        "snapshot": spec.memory_snapshot,
        "web_key": "" if template else request.web_key,
    }
