"""An image's steps as a chain of layers and a configuration, with the key of every prefix. Pure.

`key(step) = H(key(before), kind, arguments, what else it sees)`. Arguments name files by their hash. Configuration
(`env`, `workdir`, `entrypoint`, `cmd`, `shell`) makes no layer; steps that run something see it, so it is in their
keys, and in those of no others: a changed variable installs no package again.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from squall.errors import ImageBuildError
from squall.spec import ImageSpec, ImageStep, digest, identity, to_wire

HOME = "/root"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = ("/bin/sh", "-c")
DEBIAN_SLIM, FROM_REGISTRY, FROM_DOCKERFILE, FROM_SCRATCH = (
    "debian_slim",
    "from_registry",
    "from_dockerfile",
    "from_scratch",
)
DOCKERFILE_COMMANDS = "dockerfile_commands"
BASES = frozenset({"base", DEBIAN_SLIM, FROM_REGISTRY, FROM_DOCKERFILE, FROM_SCRATCH})
PIP = frozenset({"pip_install", "uv_pip_install"})
RUNS = frozenset({"apt_install", "run_commands", "run_function", DOCKERFILE_COMMANDS})
"""What they do depends on variables, working folder and shell."""
OTHERS = frozenset({"add_local", "add_python"})
_APT = re.compile(r"(?:^|[;&|(]|\bsudo|\bthen|\bdo)\s*(?:\w+=\S*\s+)*(?:apt|apt-get)\s", re.MULTILINE)
"""In the place of a command."""
CONFIGURATION = frozenset({"env", "workdir", "entrypoint", "cmd", "shell"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How containers of an image start."""

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    """Empty: /root."""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = SHELL


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step that makes a layer."""

    kind: str
    arguments: Mapping[str, Any]
    seen: Configuration
    """As it is when the step runs."""
    title: str
    """For logs and errors."""

    def key(self, before: str, arch: str) -> str:
        """Content address of the layer on top of what is before it."""
        own = to_wire(identity(ImageStep(self.kind, self.arguments)))
        seen = to_wire(self.seen) if self.kind in RUNS else {}
        return digest({"before": before, "step": own, "seen": seen, "arch": arch})


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """What an image asks for."""

    image_id: str
    python_version: str
    """Empty: what the base has."""
    base: ImageStep
    steps: tuple[Step, ...]
    start: Configuration
    """What containers get."""

    @property
    def needs_apt(self) -> bool:
        """Whether a step installs packages of the system, as far as can be seen."""
        return any(
            step.kind == "apt_install" or (step.kind == "run_commands" and any(map(_APT.search, _commands(step))))
            for step in self.steps
        )


def _commands(step: Step) -> Iterator[str]:
    return (str(command) for command in step.arguments.get("commands") or ())


def chain(
    image: ImageSpec, base: Configuration | None = None, after: Mapping[int, Configuration] | None = None
) -> Chain:
    """The steps of an image, on what its base says of itself, and what steps that are made say of what comes `after`
    them, by their number. Raises `ImageBuildError` for one that is not known."""
    first, rest = _split(image)
    now = base or Configuration()
    steps: list[Step] = []
    for number, step in enumerate(rest, start=1):
        if step.kind in CONFIGURATION:
            now = configured(now, step)
        elif step.kind in PIP | RUNS | OTHERS:
            steps.append(Step(kind=step.kind, arguments=step.arguments, seen=now, title=title(step)))
            now = (after or {}).get(len(steps) - 1, now)
        elif step.kind in BASES:
            raise ImageBuildError(f"image step {number} is the base {step.kind!r}, which has to be the first")
        else:
            raise ImageBuildError(
                f"image step {number} is {step.kind!r}, which this builder does not know",
                fix="Update the builders to the version of the SDK.",
                step=step.kind,
            )
    return Chain(
        image_id=image.id,
        python_version=image.python_version,
        base=first,
        steps=tuple(steps),
        start=now,
    )


def _split(image: ImageSpec) -> tuple[ImageStep, tuple[ImageStep, ...]]:
    if image.steps and image.steps[0].kind in BASES:
        first, rest = image.steps[0], image.steps[1:]
    else:
        first, rest = ImageStep(DEBIAN_SLIM), image.steps
    if first.kind in ("base", DEBIAN_SLIM):
        arguments = {"version": image.python_version, **first.arguments}
        first = ImageStep(DEBIAN_SLIM, arguments)
    return first, rest


def configured(before: Configuration, step: ImageStep) -> Configuration:
    """The configuration after one more step."""
    arguments = step.arguments
    match step.kind:
        case "env":
            return replace(before, env={**before.env, **_variables(arguments)})
        case "workdir":
            return replace(before, workdir=posixpath.join(before.workdir or HOME, str(arguments.get("path", ""))))
        case "entrypoint":
            return replace(before, entrypoint=_words(arguments))
        case "cmd":
            return replace(before, cmd=_words(arguments))
        case _:
            return replace(before, shell=_words(arguments) or SHELL)


def _variables(arguments: Mapping[str, Any]) -> dict[str, str]:
    values: Any = arguments.get("variables", arguments)
    if not isinstance(values, Mapping):
        raise ImageBuildError("the variables of an env step are not a mapping", step="env")
    return {str(name): str(value) for name, value in values.items()}


def _words(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(word) for word in arguments.get("command") or ())


def title(step: ImageStep) -> str:
    """The step in one line."""
    arguments = step.arguments
    shown: list[str] = [str(package) for package in arguments.get("packages") or ()]
    if arguments.get("requirements"):
        shown.append(f"{len(str(arguments['requirements']).splitlines())} lines of requirements")
    shown += [str(command) for command in arguments.get("commands") or ()]
    shown += [str(arguments[name]) for name in ("function", "tag", "version") if arguments.get(name)]
    if arguments.get("text"):
        shown.append(str(arguments["text"]).strip().splitlines()[0])
    line = " ".join([step.kind, *shown])
    return line if len(line) <= 200 else f"{line[:197]}..."
