"""Steps of an image that run something while it is built, and those that say how its containers start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from squall import image_steps
from squall.declaration import check_variables
from squall.errors import InvalidError
from squall.image_files import Copied, Ignore
from squall.image_files import ignore as checked_ignore
from squall.image_steps import Words

if TYPE_CHECKING:
    from squall.image import Image
    from squall.secret import Secret

MAX_BUILD_S = 24 * 3600


class CommandSteps:
    """A part of `Image`."""

    if TYPE_CHECKING:

        def _step(self, kind: str, arguments: dict[str, Any], force_build: bool = False) -> Image: ...

    def run_commands(
        self,
        *commands: Words,
        force_build: bool = False,
        env: Optional[Mapping[str, str]] = None,
        secrets: Sequence[Secret] = (),
        volumes: Optional[Mapping[Any, Any]] = None,
        **others: Any,
    ) -> Image:
        """Run command lines in the image, one after the other, as root. What they change is the layer.

        `secrets`: variables of these commands alone, also files in /.squall/secrets. `volumes`: see `run_function`."""
        mounted = image_steps.volumes("Image.run_commands", volumes, others)
        image_steps.refuse("Image.run_commands", others)
        lines = image_steps.commands("run_commands", commands)
        if not lines:
            return self  # type: ignore[return-value]
        arguments = {
            "commands": lines,
            **image_steps.variables("Image.run_commands", env),
            **image_steps.secrets("Image.run_commands", secrets),
            **mounted,
        }
        return self._step("run_commands", arguments, force_build)

    def run_function(
        self,
        raw_f: Callable[..., Any],
        *,
        args: Sequence[Any] = (),
        kwargs: Optional[Mapping[str, Any]] = None,
        timeout: float = 3600,
        env: Optional[Mapping[str, str]] = None,
        secrets: Sequence[Secret] = (),
        volumes: Optional[Mapping[Any, Any]] = None,
        include_source: bool = True,
        force_build: bool = False,
        **others: Any,
    ) -> Image:
        """Run a function of this machine in the image; again when its source, what it uses or its arguments change.

        `volumes`: folders of it, as of functions. What it changes there is committed when it has ended, and not if it
        raised; an image that is there already runs nothing again, so that nothing is committed again."""
        from squall import image_functions

        mounted = image_steps.volumes("Image.run_function", volumes, others)
        image_steps.refuse("Image.run_function", others)
        if not 0 < timeout <= MAX_BUILD_S:
            raise InvalidError(f"timeout of run_function must be seconds up to {MAX_BUILD_S}, got {timeout!r}")
        arguments = {
            **image_functions.step(raw_f, args, kwargs or {}, include_source),
            "timeout_s": float(timeout),
            **image_steps.variables("Image.run_function", env),
            **image_steps.secrets("Image.run_function", secrets),
            **mounted,
        }
        return self._step("run_function", arguments, force_build)

    def dockerfile_commands(
        self,
        *dockerfile_commands: Words,
        context_files: Optional[Mapping[str, Union[str, os.PathLike[str]]]] = None,
        context_dir: Optional[Union[str, os.PathLike[str]]] = None,
        ignore: Optional[Ignore] = None,
        build_args: Optional[Mapping[str, str]] = None,
        force_build: bool = False,
        **others: Any,
    ) -> Image:
        """Lines of a Dockerfile that go on from this image. `context_files`: local paths by what COPY calls them."""
        from squall import dockerfiles

        image_steps.refuse("Image.dockerfile_commands", others)
        lines = image_steps.commands("dockerfile_commands", dockerfile_commands)
        if not lines:
            return self  # type: ignore[return-value]
        text = dockerfiles.checked("\n".join(lines) + "\n")
        arguments: dict[str, Any] = {"text": text, **docker_arguments(text, context_dir, ignore, build_args)}
        if context_files:
            named = {f"/{name.lstrip('/')}": os.fspath(path) for name, path in context_files.items()}
            arguments["context"] = Copied(lambda: named)
        return self._step("dockerfile_commands", arguments, force_build)

    # --- how containers start ---

    def workdir(self, path: Union[str, os.PathLike[str]]) -> Image:
        """The folder that containers start in; a relative path is below the one before (at first /root)."""
        folder = os.fspath(path)
        if not folder or "\0" in folder or ".." in folder.split("/"):
            raise InvalidError(f"workdir {folder!r} is not a path of a container", fix='Write it as "/root/data".')
        return self._step("workdir", {"path": folder})

    def env(self, vars: dict[str, str]) -> Image:  # programs give it by this name
        """Set environment variables for later steps and for the container."""
        check_variables("Image.env", dict(vars))
        return self._step("env", {"variables": dict(vars)})

    def entrypoint(self, entrypoint_commands: Sequence[str]) -> Image:
        """The program that containers start with; it starts the words that it gets. []: none, whatever a base had."""
        return self._step("entrypoint", {"command": image_steps.words("Image.entrypoint", entrypoint_commands)})

    def cmd(self, cmd: Sequence[str]) -> Image:
        """What a container without a function runs."""
        return self._step("cmd", {"command": image_steps.words("Image.cmd", cmd)})

    def shell(self, shell_commands: Sequence[str]) -> Image:
        """The program that gets the lines of later `run_commands`, such as ["/bin/bash", "-c"]."""
        words = image_steps.words("Image.shell", shell_commands)
        if not words:
            raise InvalidError("Image.shell needs a program", fix='Write it as ["/bin/bash", "-c"].')
        return self._step("shell", {"command": words})


def docker_arguments(
    text: str,
    context_dir: Optional[Union[str, os.PathLike[str]]],
    ignore: Optional[Ignore],
    build_args: Optional[Mapping[str, str]],
) -> dict[str, Any]:
    """Context and arguments of a Dockerfile, only where there are any."""
    from squall import dockerfiles

    found: dict[str, Any] = {}
    if build_args:
        found["build_args"] = {
            image_steps.text("a build argument", name): str(value) for name, value in build_args.items()
        }
    if dockerfiles.copied(text) != []:
        folder = os.fspath(context_dir or ".")
        ignored = None if ignore is None else checked_ignore(ignore)
        found["context"] = Copied(lambda: dockerfiles.context(text, folder, ignored))
    return found
