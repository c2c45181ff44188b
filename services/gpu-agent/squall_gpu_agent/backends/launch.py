"""What a process of this backend is started with: command, environment, working folder, SETUP frame.

Owns the layout of a container's scratch folder and the variables that containers see. Starts nothing.
"""

from __future__ import annotations

import math
import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squall.spec import FunctionSpec, to_wire
from squall_gpu_agent.backend import CommandFailed, ContainerRequest
from squall_gpu_agent.backends.bundle_view import BucketView, View, VolumeView
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
# Read by the loader, libc or Python before any of our code runs: setting them after a fork comes too late.
_EARLY = ("LD_", "DYLD_", "GLIBC_", "MALLOC_", "LC_", "LANG", "LOCPATH")
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
class Place:
    """Where things are, as the container sees them."""

    code_root: str
    """Where its modules are imported from."""
    code_dir: str
    """Prefix to cut from file names in tracebacks; "" for none."""
    home: str
    cwd: str
    scratch: str
    """Folder for payloads over the inline limit."""
    tmp: str
    sdk: str
    picklers: str
    path: str
    """PATH."""
    prefix: str
    """The image's environment; "" where the interpreter has its own."""
    site_packages: tuple[str, ...]
    """Empty where the interpreter knows."""
    socket: str
    """Of the agent, for calls; "" for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One process to start, container or template, with everything that it needs found."""

    name: str
    """Id of the container, or the template's key."""
    request: ContainerRequest

    @property
    def image_env(self) -> Mapping[str, str]:
        """Variables that the image declares."""
        raise NotImplementedError

    @property
    def image_key(self) -> str:
        """What tells this image on this machine from all others."""
        raise NotImplementedError

    @property
    def place(self) -> Place:
        """Where it will find things."""
        raise NotImplementedError

    def volume_places(self, number: int) -> tuple[str, str]:
        """Of a volume: the folder with what the container changed in it, and a view that is always writable."""
        raise NotImplementedError

    @property
    def declared(self) -> dict[str, str]:
        """Variables that the image and the function declare."""
        return {**self.image_env, **self.request.env}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessWanted(Wanted):
    """One of the process backend."""

    environment: Environment
    sdk: SdkFiles
    view_reason: str | None
    """The file for which the bundle must be shown at its absolute paths; None: not needed."""
    paths: Paths
    path_variable: str

    @property
    def image_env(self) -> Mapping[str, str]:
        """See `Wanted.image_env`."""
        return self.environment.env

    @property
    def image_key(self) -> str:
        """See `Wanted.image_key`."""
        return str(self.environment.prefix)

    @property
    def place(self) -> Place:
        """See `Wanted.place`."""
        socket = self.request.socket_path
        return Place(
            code_root="/root" if self.view_reason else str(self.request.code_dir / "root"),
            code_dir="" if self.view_reason else str(self.request.code_dir),
            home="/root" if self.view_reason else str(self.paths.home),
            cwd=self.cwd,
            scratch=str(self.scratch),
            tmp=str(self.scratch / "tmp"),
            sdk=str(self.sdk.sdk),
            picklers=str(self.sdk.picklers),
            path=f"{self.environment.prefix / 'bin'}:{self.path_variable}",
            prefix=str(self.environment.prefix),
            site_packages=(str(self.environment.site_packages),),
            socket=str(socket) if socket is not None else "",
        )

    @property
    def scratch(self) -> Path:
        """Its folder."""
        return self.paths.containers / self.name

    def volume_places(self, number: int) -> tuple[str, str]:
        """See `Wanted.volume_places`."""
        folder = self.scratch / "volumes" / str(number)
        return str(folder / "upper"), str(folder / "all")

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


def prepare_scratch(wanted: ProcessWanted) -> None:
    """Make the scratch folder. Without a view, `root` in it stands for /root: links to the bundle, own new files."""
    for name in ("tmp", "root", "view", "points"):
        (wanted.scratch / name).mkdir(parents=True)
    for number, volume in enumerate(wanted.request.volumes):
        for folder in ("upper", "work", "all"):
            (wanted.scratch / "volumes" / str(number) / folder).mkdir(parents=True)
        (wanted.scratch / "points" / volume.mount.path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for number, bucket in enumerate(wanted.request.buckets):
        (wanted.scratch / "buckets" / str(number)).mkdir(parents=True)
        (wanted.scratch / "points" / bucket.path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    if wanted.view_reason is None:
        source = wanted.request.code_dir / "root"
        if source.is_dir():
            for entry in os.scandir(source):
                os.symlink(entry.path, wanted.scratch / "root" / entry.name)
        _make_workdir(wanted)


def _make_workdir(wanted: ProcessWanted) -> None:
    """A working folder below /root that the bundle does not bring. Never through a link: the bundle is others' too."""
    home, folder = Path(wanted.home_folder), Path(wanted.cwd)
    if folder.is_relative_to(home) and not any(parent.is_symlink() for parent in [folder, *folder.parents]):
        folder.mkdir(parents=True, exist_ok=True)


def view(wanted: ProcessWanted) -> View | None:
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
    return View(
        code_dir=str(request.code_dir),
        work=str(wanted.scratch / "view"),
        keep=[str(path.absolute()) for path in keep],
        points=str(wanted.scratch / "points"),
        volumes=[
            VolumeView(
                lower=str(volume.lower.absolute()),
                folder=str(wanted.scratch / "volumes" / str(number)),
                target=volume.mount.path,
                read_only=volume.mount.read_only,
            )
            for number, volume in enumerate(request.volumes)
        ],
        buckets=[
            BucketView(
                server=str(bucket.server),
                folder=str(wanted.scratch / "buckets" / str(number)),
                target=bucket.path,
                read_only=bucket.read_only,
            )
            for number, bucket in enumerate(request.buckets)
        ],
    )


def command(python: Path, sdk: str, first: str = "") -> list[str]:
    """-I -S: nothing of the host's, and no time for it. A crash in C code prints the Python stack.

    `first`: statements before all others, for backends that cannot pass the socket as descriptor 3.
    """
    return [str(python), "-I", "-S", "-X", "faulthandler", "-c", f"{first}{_BOOT}", sdk]


def needs_exec(variables: Mapping[str, str]) -> bool:
    """Whether one of them has its effect only in a process that is started with it: no fork can have it later."""
    return any(name.startswith(_EARLY) and not _is_ours(name, value) for name, value in variables.items())


def _is_ours(name: str, value: str) -> bool:
    """The locale that every interpreter is started with, as many images declare it."""
    return name.startswith(("LC_", "LANG")) and value.lower() in (LANG.lower(), LANG.lower().replace("-", ""))


def shared_variables(wanted: Wanted) -> dict[str, str]:
    """What all containers of a function version see, and so may be forked with."""
    request, place = wanted.request, wanted.place
    return {
        "PATH": place.path,
        "HOME": place.home,
        "LANG": LANG,
        "PYTHONPATH": f"{place.code_root}:{place.sdk}",  # for what user code starts with sys.executable
        "MODAL_IS_REMOTE": "1",
        "MODAL_IMAGE_ID": request.spec.image.id,
        **wanted.declared,
        "SQUALL_CONTAINER": "1",
        "SQUALL_APP_ID": request.app_id,
        "SQUALL_FUNCTION_ID": request.function_id,
        "SQUALL_IMAGE_ID": request.spec.image.recipe_id,
    }


def template_variables(wanted: Wanted) -> dict[str, str]:
    """`shared_variables`, held to one thread: a second one would forbid the fork."""
    shared = shared_variables(wanted)
    return {**TEMPLATE_VARIABLES, **shared, **NO_DEVICES, **dict.fromkeys(THREAD_VARIABLES, "1")}


def own_variables(wanted: Wanted) -> dict[str, str]:
    """What is different in each container; set before import in a fresh one, after the fork in a forked one."""
    request, place = wanted.request, wanted.place
    count = str(thread_count(request.spec))
    declared = wanted.declared
    own = {name: declared.get(name, count) for name in THREAD_VARIABLES}
    own |= {"TMPDIR": declared.get("TMPDIR", place.tmp), **request.gpu_env}
    own["SQUALL_CONTAINER_ID"] = wanted.name
    own["MODAL_TASK_ID"] = declared.get("MODAL_TASK_ID", wanted.name)  # the name that programs know it by
    if place.socket:
        own["SQUALL_SOCKET"] = place.socket
    if request.token:
        own["SQUALL_TOKEN"] = request.token
    return own


def command_beside(wanted: ProcessWanted, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
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
    request, spec, place = wanted.request, wanted.request.spec, wanted.place
    return {
        "module": spec.code.module,
        "qualname": spec.code.qualname,
        "is_class": spec.is_class,
        "methods": [to_wire(method) for method in spec.methods],
        "code_root": place.code_root,
        "code_dir": place.code_dir,
        "site_packages": list(place.site_packages),
        "prefix": place.prefix,
        "picklers": place.picklers,
        "cwd": place.cwd,
        "scratch": place.scratch,
        "env": dict(env),
        "whole_env": whole_env,
        "unset": [name for name in TEMPLATE_VARIABLES if forked and name not in wanted.declared],
        "max_inputs": spec.scaling.max_inputs,
        "batch_size": spec.batching.max_batch_size if spec.batching else 0,
        "batch_wait_ms": spec.batching.wait_ms if spec.batching else 0,
        "params": dict(request.params) if request.params is not None else None,
        "template": template,
        "snapshot": spec.memory_snapshot,
        "volumes": list(volume_fields(wanted)),
        "web_key": "" if template else request.web_key,
    }


def volume_fields(wanted: Wanted) -> Iterator[dict[str, Any]]:
    """The fields of `squall_runner.volumes.Mount`, for each volume."""
    for number, volume in enumerate(wanted.request.volumes):
        upper, inner = wanted.volume_places(number)
        mount = volume.mount
        yield {
            "path": mount.path,
            "id": mount.volume,
            "name": mount.name,
            "environment": mount.environment,
            "read_only": mount.read_only,
            "sub_path": mount.sub_path,
            "version": volume.version,
            "manifest": volume.manifest,
            "upper": upper,
            "inner": inner,
        }
