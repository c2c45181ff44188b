"""Image steps and their keys. Pure: the same declaration has the same keys on every machine.

A key names a prefix of the chain: `key(step) = H(key(before), kind, arguments)`. Steps that only change configuration
(`env`) do not take part, so a changed variable rebuilds nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, ImageStep, digest, official_python, to_wire

BASE_KINDS = frozenset({"base", "debian_slim"})
PIP_KINDS = frozenset({"pip_install", "uv_pip_install"})
ENV_KIND = "env"
WORKDIR_KIND = "workdir"
APT_KIND = "apt_install"
OF_OTHERS = frozenset({"cmd", "shell"})
"""Of containers without a function, and of `run_commands`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One step that installs something, and the key of the chain up to and including it."""

    key: str
    title: str
    """For logs and errors: `pip_install numpy==2.1 pandas`."""
    packages: tuple[str, ...]
    options: tuple[str, ...]
    """Arguments for `uv pip install`."""
    requirements: str = ""
    """Content of a requirements file that is installed as well."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables of this step alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """What an image asks of a machine."""

    image_id: str
    python_version: str
    base_key: str
    layers: tuple[Layer, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    """Folder that containers start in; empty for /root."""
    stands_in: str = ""
    """What is told of this machine's Python if it takes the place of another one."""
    machine_packages: tuple[str, ...] = ()
    """Those of `apt_install`: the machine has them, or the image cannot be had there."""

    @property
    def key(self) -> str:
        """Key of the whole environment."""
        return self.layers[-1].key if self.layers else self.base_key


IN_ISOLATION = (
    "Isolated containers have it. `squall run` and `squall up` make them by themselves, as root on Linux and if no "
    "other backend was named (`squall doctor` says what lacks here); on machines of your own agents it takes the "
    "backend `sandbox`, `gvisor` or `docker`, and SQUALL_BUILDER_FORMATS=layers for the builder"
)


def plan(image: ImageSpec) -> ImagePlan:
    """The layers and variables of an image. Raises `ImageBuildError` for a step that environments cannot have."""
    official = official_python(image.steps[0]) if image.steps else ""
    python_version = official or image.python_version
    base_key = digest({"python": python_version})
    layers: list[Layer] = []
    env: dict[str, str] = {}
    workdir = ""
    machine_packages: list[str] = []
    for number, step in enumerate(image.steps, start=1):
        if step.arguments.get("secrets"):
            raise ImageBuildError(
                f"image step {number} ({step.kind}) has secrets, which are given to build rooms alone",
                fix=IN_ISOLATION + ".",
                step=step.kind,
            )
        if number == 1 and official:
            continue
        if step.kind in BASE_KINDS | OF_OTHERS or (step.kind == "entrypoint" and not step.arguments.get("command")):
            continue
        if step.kind == ENV_KIND:
            env.update(_variables(step))
        elif step.kind == WORKDIR_KIND:
            workdir = posixpath.join(workdir or "/root", str(step.arguments.get("path", "")))
        elif step.kind == APT_KIND:
            machine_packages += _packages(step)
        elif step.kind in PIP_KINDS:
            before = layers[-1].key if layers else base_key
            packages = _packages(step)
            if packages or step.arguments.get("requirements"):
                layers.append(_layer(before, step, packages))
        else:
            raise ImageBuildError(
                f"image step {number} is {step.kind!r}, which containers that are plain processes cannot have",
                fix=f"{IN_ISOLATION}; the backend `process` has debian_slim, python:3.X of a registry, Python "
                "packages, env, workdir, local files that no later step builds on, and of apt_install what the "
                "machine has.",
                step=step.kind,
            )
    return ImagePlan(
        image_id=image.id,
        python_version=python_version,
        stands_in=stands_in(image.steps[0]) if official else "",
        base_key=base_key,
        layers=tuple(layers),
        env=env,
        workdir=workdir,
        machine_packages=tuple(machine_packages),
    )


def stands_in(step: ImageStep) -> str:
    """What takes the place of an official Python image where it is not pulled."""
    return (
        f"warning: {step.arguments.get('tag')} is not pulled: Python {official_python(step)} of this machine stands in "
        "for it, and so do the machine's programs and libraries"
    )


def _layer(before: str, step: ImageStep, packages: tuple[str, ...]) -> Layer:
    requirements = str(step.arguments.get("requirements") or "")
    named = [*packages, f"{len(requirements.splitlines())} lines of requirements"] if requirements else packages
    return Layer(
        key=digest({"before": before, "kind": "pip", "arguments": to_wire(step.arguments)}),
        title=f"{step.kind} {' '.join(named)}",
        packages=packages,
        options=options(step.arguments),
        requirements=requirements,
        env=dict(step.arguments.get("env") or {}),
    )


def _packages(step: ImageStep) -> tuple[str, ...]:
    return tuple(str(package) for package in step.arguments.get("packages") or ())


def options(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Arguments of a pip step for `uv pip install`."""
    found: list[str] = []
    if arguments.get("index_url"):
        found += ["--default-index", str(arguments["index_url"])]
    for url in _list(arguments.get("extra_index_url")):
        found += ["--index", url]
    for place in _list(arguments.get("find_links")):
        found += ["--find-links", place]
    if arguments.get("pre"):
        found += ["--prerelease", "allow"]
    extra = arguments.get("extra_options") or ()
    found += extra.split() if isinstance(extra, str) else [str(option) for option in extra]
    return tuple(found)


def _list(value: Any) -> list[str]:
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _variables(step: ImageStep) -> dict[str, str]:
    # {"variables": {...}}, or the variables themselves.
    values: Any = step.arguments.get("variables", step.arguments)
    if not isinstance(values, Mapping):
        raise ImageBuildError("the variables of an env step are not a mapping", step=ENV_KIND)
    return {str(name): str(value) for name, value in values.items()}


def described(steps: Sequence[Layer]) -> str:
    """The layers in one line."""
    return ", ".join(layer.title for layer in steps) or "no packages"
