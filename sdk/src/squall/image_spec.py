"""What an image is: a chain of build steps, its id, and what its steps need of the machine.

Plain data; who builds it is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from squall.wire import digest, to_wire


@dataclass(frozen=True)
class ImageStep:
    """One build step: what it does and its arguments. Equal prefixes of steps are built once."""

    kind: str
    """Bases: "base" (nothing), "debian_slim", "from_registry", "from_dockerfile", "from_scratch". Layers:
    "pip_install", "apt_install", "run_commands", "run_function", "dockerfile_commands", "add_local", "add_python".
    Configuration: "env", "workdir", "entrypoint", "cmd", "shell"."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """pip_install: `packages` (sorted requirement strings) or `requirements` (content of a requirements file) and, only
    where given, `index_url`, `extra_index_url`, `find_links`, `pre`, `extra_options`. env: `variables` (str to str).
    workdir: `path`. from_registry: `tag`. apt_install: `packages`. run_commands: `commands`. run_function: `function`,
    `source_key`, pickled `arguments` in base64, `timeout_s`. Dockerfiles: `text`, `build_args`, `context`. add_local:
    `files`. entrypoint, cmd, shell: `command`. Files of the user are {"sha256", "bytes"} of a zip in the blob store.
    Every step that builds may have `env` (for itself) and `forced` (a mark that makes it a step of its own). Steps with
    `secrets` (what the program calls them) and functions get a `scope` from the server: they are nobody else's. Names
    that start with "_" say where something is and are no part of the image's identity."""


ENVIRONMENT_KINDS = frozenset(
    {"base", "debian_slim", "pip_install", "uv_pip_install", "env", "workdir", "cmd", "shell"}
)
"""Steps that can be had without a root file system."""


def identity(step: ImageStep) -> ImageStep:
    """The step without what only says where something is."""
    return ImageStep(step.kind, {name: value for name, value in step.arguments.items() if not name.startswith("_")})


@dataclass(frozen=True)
class ImageSpec:
    """A chain of steps. Its id is the hash of all of them."""

    python_version: str = "3.11"
    """Empty: the one that the base has."""
    steps: tuple[ImageStep, ...] = ()

    @property
    def id(self) -> str:
        """`im-` and 24 hex digits: the content address of the image."""
        return "im-" + digest(to_wire(ImageSpec(self.python_version, tuple(map(identity, self.steps)))))[:24]

    @property
    def recipe_id(self) -> str:
        """The id as the program knows it: the server adds whose the secrets are that steps are made with."""
        steps = (
            ImageStep(step.kind, {name: value for name, value in step.arguments.items() if name != "scope"})
            for step in self.steps
        )
        return ImageSpec(self.python_version, tuple(steps)).id

    @property
    def needs_root(self) -> bool:
        """Whether it has a file system of its own: a Python environment on the machine's cannot stand for it."""
        return any(_needs_root(step) for step in self.steps)

    @property
    def needs_isolation(self) -> bool:
        """The same, but for what plain processes have of their machine: packages of the system, and a Python that
        stands in for that of an official image."""
        return any(_needs_root(step) for step in self.steps if step.kind != "apt_install" and not official_python(step))


def official_python(step: ImageStep) -> str:
    """The minor version of an official Python image on Debian that a `from_registry` step names; "" for other steps."""
    import re

    own = step.arguments.get("secrets") or step.arguments.get("forced")
    if step.kind != "from_registry" or own:
        return ""
    tag = r"(?:docker\.io/)?(?:library/)?python:(3\.\d+)(?:\.\d+)?(?:-(?:slim|bullseye|bookworm|trixie))*"
    found = re.fullmatch(tag, str(step.arguments.get("tag", "")))
    return found[1] if found else ""


def _needs_root(step: ImageStep) -> bool:
    if step.arguments.get("secrets"):
        return True
    if step.kind == "entrypoint":
        return bool(step.arguments.get("command"))
    return step.kind not in ENVIRONMENT_KINDS
