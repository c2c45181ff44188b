"""Steps of an image that install packages: Python's with uv, the system's with apt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from squall import image_steps
from squall.image_files import Later
from squall.image_steps import Words

if TYPE_CHECKING:
    from squall.image import Image
    from squall.secret import Secret

PathLike = Union[str, "os.PathLike[str]"]


class PackageSteps:
    """A part of `Image`."""

    if TYPE_CHECKING:

        def _step(self, kind: str, arguments: dict[str, Any], force_build: bool = False) -> Image: ...

    def pip_install(
        self,
        *packages: Words,
        find_links: Optional[str] = None,
        index_url: Optional[str] = None,
        extra_index_url: Optional[str] = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Optional[Mapping[str, str]] = None,
        secrets: Sequence[Secret] = (),
        **others: Any,
    ) -> Image:
        """Install Python packages, given one by one or as lists. No packages: the same image.

        `secrets`: variables of this installation alone, such as UV_INDEX_URL with a password in it."""
        image_steps.refuse("Image.pip_install", others)
        names = image_steps.packages("pip_install", packages)
        if not names:
            return self  # type: ignore[return-value]
        arguments = {
            "packages": sorted(names),
            **image_steps.pip_options(find_links, index_url, extra_index_url, pre, extra_options),
            **image_steps.variables("Image.pip_install", env),
            **image_steps.secrets("Image.pip_install", secrets),
        }
        return self._step("pip_install", arguments, force_build)

    def uv_pip_install(self, *packages: Words, requirements: Optional[Sequence[str]] = None, **keywords: Any) -> Image:
        """The same as `pip_install`: squall installs with uv in any case."""
        image = self.pip_install(*packages, **keywords)
        for path in requirements or ():
            image = image.pip_install_from_requirements(path, **keywords)
        return image

    def pip_install_from_requirements(
        self, requirements_txt: PathLike, *, find_links: Optional[str] = None, **options: Any
    ) -> Image:
        """Install what a requirements file lists. Options as of `pip_install`."""
        from squall import requirements

        path = os.fspath(requirements_txt)
        return self._install_later("requirements", lambda: requirements.of_file(path), find_links, options)

    def pip_install_from_pyproject(
        self,
        pyproject_toml: PathLike,
        optional_dependencies: Sequence[str] = (),
        *,
        find_links: Optional[str] = None,
        **options: Any,
    ) -> Image:
        """Install the dependencies of a project, and those of some of its extras. Options as of `pip_install`."""
        from squall import requirements

        path, extras = os.fspath(pyproject_toml), list(optional_dependencies)
        return self._install_later(
            "packages", lambda: sorted(requirements.of_pyproject(path, extras)), find_links, options
        )

    def uv_sync(
        self,
        uv_project_dir: PathLike = "./",
        *,
        groups: Optional[Sequence[str]] = None,
        extras: Optional[Sequence[str]] = None,
        frozen: bool = True,
        **options: Any,
    ) -> Image:
        """Install what the uv.lock of a project has, its own code left out. `frozen`: the lock file as it is."""
        from squall import requirements

        folder, wanted = os.fspath(uv_project_dir), (list(groups or ()), list(extras or ()))
        return self._install_later("requirements", lambda: requirements.of_lock(folder, *wanted, frozen), None, options)

    def poetry_install_from_file(
        self,
        poetry_pyproject_toml: PathLike,
        poetry_lockfile: Optional[PathLike] = None,
        *,
        ignore_lockfile: bool = False,
        with_: Sequence[str] = (),
        without: Sequence[str] = (),
        only: Sequence[str] = (),
        **options: Any,
    ) -> Image:
        """Install what the poetry.lock beside a pyproject.toml has, the project's own code left out."""
        from squall import requirements

        path = os.fspath(poetry_pyproject_toml)
        lock = (
            None
            if ignore_lockfile
            else os.fspath(poetry_lockfile or os.path.join(os.path.dirname(path), "poetry.lock"))
        )
        groups = (list(with_), list(without), list(only))
        return self._install_later("requirements", lambda: requirements.of_poetry(path, lock, *groups), None, options)

    def apt_install(
        self,
        *packages: Words,
        force_build: bool = False,
        env: Optional[Mapping[str, str]] = None,
        **others: Any,
    ) -> Image:
        """Install packages of the image's Debian. No packages: the same image."""
        image_steps.refuse("Image.apt_install", others)
        names = image_steps.packages("apt_install", packages)
        if not names:
            return self  # type: ignore[return-value]
        arguments = {"packages": sorted(names), **image_steps.variables("Image.apt_install", env)}
        return self._step("apt_install", arguments, force_build)

    def _install_later(
        self, kind: str, read: Callable[[], Any], find_links: Optional[str], options: dict[str, Any]
    ) -> Image:
        """A pip step whose content is read when the image is first needed: a container does not have the file."""
        from squall.image import Image

        force_build = options.pop("force_build", False)
        arguments = dict(Image._from("").pip_install("x", find_links=find_links, **options)._chain.steps[0][1])
        del arguments["packages"]
        return self._step("pip_install", {**arguments, kind: Later(read)}, force_build)
