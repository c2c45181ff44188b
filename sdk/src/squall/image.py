"""Image: what a function's container has besides its code. An immutable chain of steps; building is the server's.

Owns the checks of the steps and the order of steps and local files. Local files are not part of the image: they travel
with the user's code (`bundle`), so that a changed file rebuilds nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

from squall.declaration import check_variables
from squall.errors import InvalidError, UnimplementedArgument
from squall.unimplemented import missing_classmethods

if TYPE_CHECKING:
    from squall.spec import ImageSpec

Ignore = Union[Sequence[str], Callable[[Any], bool]]

LOCAL_FILES_LAST = "Put `add_local_*` last: local files are attached when a container starts, after every build step."


class LocalFile(NamedTuple):
    """One file from here."""

    local: str
    remote: str


class LocalDir(NamedTuple):
    """A folder from here with everything below it that `ignore` does not match."""

    local: str
    remote: str
    ignore: Ignore


class LocalPython(NamedTuple):
    """Importable modules or packages from here."""

    modules: tuple[str, ...]
    ignore: Optional[Ignore]


LocalSource = Union[LocalFile, LocalDir, LocalPython]


class Later:
    """A value that is read when it is first needed, once."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._found: Any = None

    def get(self) -> Any:
        """The value. Raises `InvalidError` if it cannot be read."""
        if self._found is None:
            self._found = self._read()
        return self._found


def _now(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value.get() if isinstance(value, Later) else value for name, value in arguments.items()}


class _Chain(NamedTuple):
    python_version: str
    steps: tuple[tuple[str, dict[str, Any]], ...] = ()
    local: tuple[LocalSource, ...] = ()


class Image:
    """A recipe for containers: start with `Image.debian_slim()` and chain what you need.

    Every method returns a new image; nothing is built before a function that uses it runs or is deployed."""

    def __init__(self, chain: Optional[_Chain] = None) -> None:
        if chain is None:
            raise InvalidError("Image() is not a recipe", fix="Start with `squall.Image.debian_slim()`.")
        self._chain = chain

    @classmethod
    def debian_slim(cls, python_version: Optional[str] = None, *, force_build: bool = False) -> Image:
        """Debian with Python: the version that runs here unless said (`"3.12"`)."""
        _not_forced(force_build)
        if python_version is not None and not isinstance(python_version, str):
            raise TypeError(f'python_version must be text such as "3.12", got {python_version!r}')
        version = python_version or f"{sys.version_info.major}.{sys.version_info.minor}"
        parts = version.split(".")
        if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts):
            raise InvalidError(f"python_version {version!r} is not valid", fix='Write it as "3.12".')
        return cls(_Chain(version))

    # --- build steps ---

    def pip_install(
        self,
        *packages: Union[str, Sequence[str]],
        find_links: Optional[str] = None,
        index_url: Optional[str] = None,
        extra_index_url: Optional[str] = None,
        pre: bool = False,
        extra_options: str = "",
        **others: Any,
    ) -> Image:
        """Install Python packages, given one by one or as lists. No packages: the same image."""
        _refuse_build_keywords("Image.pip_install", others)
        names = _flat("pip_install", packages)
        if not names:
            return self
        arguments: dict[str, Any] = {"packages": sorted(names)}
        for name, value in (("find_links", find_links), ("index_url", index_url), ("extra_index_url", extra_index_url)):
            if value is not None:
                arguments[name] = _text(name, value)
        if pre:
            arguments["pre"] = True
        if extra_options:
            arguments["extra_options"] = _text("extra_options", extra_options)
        return self._step("pip_install", arguments)

    def uv_pip_install(
        self,
        *packages: Union[str, Sequence[str]],
        requirements: Optional[Sequence[str]] = None,
        uv_version: Optional[str] = None,
        **keywords: Any,
    ) -> Image:
        """The same as `pip_install`: squall installs with uv in any case."""
        if uv_version is not None:
            raise UnimplementedArgument(
                "squall does not have `uv_version=` of Image.uv_pip_install", fix="Remove it: the builder has one uv."
            )
        image = self.pip_install(*packages, **keywords)
        for path in requirements or ():
            image = image.pip_install_from_requirements(path, **keywords)
        return image

    def pip_install_from_requirements(
        self, requirements_txt: Union[str, os.PathLike[str]], *, find_links: Optional[str] = None, **options: Any
    ) -> Image:
        """Install what a requirements file lists. Options as of `pip_install`."""
        from squall import requirements

        path = os.fspath(requirements_txt)
        return self._install_later("requirements", lambda: requirements.of_file(path), find_links, options)

    def pip_install_from_pyproject(
        self,
        pyproject_toml: Union[str, os.PathLike[str]],
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
        uv_project_dir: Union[str, os.PathLike[str]] = "./",
        *,
        groups: Optional[Sequence[str]] = None,
        extras: Optional[Sequence[str]] = None,
        frozen: bool = True,
        **others: Any,
    ) -> Image:
        """Install what the uv.lock of a project has, its own code left out. `frozen`: the lock file as it is."""
        from squall import requirements

        if others.pop("uv_version", None) is not None:
            raise UnimplementedArgument(
                "squall does not have `uv_version=` of Image.uv_sync", fix="Remove it: the uv of this machine is used."
            )
        _refuse_build_keywords("Image.uv_sync", others)
        folder, wanted = os.fspath(uv_project_dir), (list(groups or ()), list(extras or ()))
        return self._install_later("requirements", lambda: requirements.of_lock(folder, *wanted, frozen), None, {})

    def _install_later(
        self, kind: str, read: Callable[[], Any], find_links: Optional[str], options: dict[str, Any]
    ) -> Image:
        """A pip step whose content is read when the image is first needed: a container does not have the file."""
        arguments = dict(Image(_Chain("")).pip_install("x", find_links=find_links, **options)._chain.steps[0][1])
        del arguments["packages"]
        return self._step("pip_install", {**arguments, kind: Later(read)})

    def workdir(self, path: Union[str, os.PathLike[str]]) -> Image:
        """The folder that containers start in; a relative path is below the one before (at first /root)."""
        folder = os.fspath(path)
        if not folder or "\0" in folder or ".." in folder.split("/"):
            raise InvalidError(f"workdir {folder!r} is not a path of a container", fix='Write it as "/root/data".')
        return self._step("workdir", {"path": folder})

    def env(self, variables: dict[str, str]) -> Image:
        """Set environment variables for later steps and for the container."""
        check_variables("Image.env", dict(variables))
        return self._step("env", {"variables": dict(variables)})

    def pipe(self, function: Callable[..., Image], *args: Any, **kwargs: Any) -> Image:
        """`function(self, ...)`: for recipes shared between images."""
        return function(self, *args, **kwargs)

    # --- local files ---

    def add_local_file(
        self, local_path: Union[str, os.PathLike[str]], remote_path: str, *, copy: bool = False
    ) -> Image:
        """Attach a file from here. A remote path that ends with a slash keeps the file's name."""
        _not_copied(copy)
        local, remote = os.fspath(local_path), _absolute(remote_path)
        if remote.endswith("/"):
            remote += os.path.basename(local)
        return self._attach(LocalFile(local, remote))

    def add_local_dir(
        self, local_path: Union[str, os.PathLike[str]], remote_path: str, *, copy: bool = False, ignore: Ignore = ()
    ) -> Image:
        """Attach a folder from here. `ignore`: dockerignore patterns, or a function of the path below the folder."""
        _not_copied(copy)
        return self._attach(LocalDir(os.fspath(local_path), _absolute(remote_path), _ignore(ignore)))

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Optional[Ignore] = None) -> Image:
        """Attach modules or packages that are importable here; by default their .py files."""
        _not_copied(copy)
        for module in modules:
            if not all(part.isidentifier() for part in str(module).split(".")):
                raise InvalidError(f"{module!r} is not a module name", fix="Name importable modules, not files.")
        return self._attach(LocalPython(tuple(modules), None if ignore is None else _ignore(ignore)))

    # --- use ---

    @contextlib.contextmanager
    def imports(self) -> Iterator[None]:
        """Imports in the block may fail here; they must succeed in containers of this image."""
        try:
            yield
        except ImportError:
            if self._runs_here():
                raise

    def _runs_here(self) -> bool:
        from squall import config
        from squall.place import is_local

        if is_local():
            return False
        here = os.environ.get(config.IMAGE_ID)
        try:
            return not here or here == self.spec().id
        except InvalidError:  # its requirements were read from a file, which is not in the container
            return False

    def spec(self) -> ImageSpec:
        """The recipe as the builder gets it."""
        from squall.spec import ImageSpec, ImageStep

        return ImageSpec(
            self._chain.python_version, tuple(ImageStep(kind, _now(arguments)) for kind, arguments in self._chain.steps)
        )

    @property
    def local_sources(self) -> tuple[LocalSource, ...]:
        """What is attached from here."""
        return self._chain.local

    def _step(self, kind: str, arguments: dict[str, Any]) -> Image:
        if self._chain.local:
            raise InvalidError(f"the build step {kind} comes after add_local_*", fix=LOCAL_FILES_LAST)
        return Image(self._chain._replace(steps=(*self._chain.steps, (kind, arguments))))

    def _attach(self, source: LocalSource) -> Image:
        return Image(self._chain._replace(local=(*self._chain.local, source)))

    def __repr__(self) -> str:
        steps = "".join(f".{kind}(...)" for kind, _ in self._chain.steps)
        return f'Image.debian_slim("{self._chain.python_version}"){steps}'


PIP_INSTEAD = "Use `Image.debian_slim()` with `pip_install`, and what is installed on the machine."
for _name, _missing in missing_classmethods(
    "Image",
    dict.fromkeys(
        (
            "apt_install", "build", "cmd", "dockerfile_commands", "entrypoint", "from_aws_ecr", "from_dockerfile",
            "from_gcp_artifact_registry", "from_id", "from_name", "from_registry", "from_scratch", "micromamba",
            "micromamba_install", "pip_install_private_repos", "poetry_install_from_file", "publish", "run_commands",
            "run_function", "shell",
        ),
        PIP_INSTEAD,
    ),
).items():  # fmt: skip
    setattr(Image, _name, _missing)


COPY_INSTEAD = "Use `add_local_file` or `add_local_dir`."
for _name, _missing in missing_classmethods(
    "Image", dict.fromkeys(("copy_local_file", "copy_local_dir", "copy_mount"), COPY_INSTEAD)
).items():
    setattr(Image, _name, _missing)


def _refuse_build_keywords(where: str, keywords: dict[str, Any]) -> None:
    from squall.unimplemented import refuse_keywords

    instead = "Remove it."
    refuse_keywords(
        where,
        keywords,
        {
            "force_build": ((False,), "Change the image, for example with `.env(...)`, to build it again."),
            "env": ((None, {}), "Use `Image.env(...)` before the step."),
            "secrets": ((None, (), []), "Give credentials in the URL of your own index."),
            "gpu": ((None,), instead),
        },
    )


def _not_forced(force_build: bool) -> None:
    if force_build:
        raise UnimplementedArgument(
            "squall does not have `force_build=` yet", fix="Change the image, for example with `.env(...)`."
        )


def _not_copied(copy: bool) -> None:
    if copy:
        raise UnimplementedArgument(
            "squall does not have `copy=True` yet", fix="Leave it out: the files are there when the container starts."
        )


def _flat(where: str, packages: Sequence[Union[str, Sequence[str]]]) -> list[str]:
    names: list[str] = []
    for package in packages:
        names.extend([package] if isinstance(package, str) else package)
    for name in names:
        if not _text("a package", name).strip():
            raise InvalidError(f"{where}: a package has no name", fix="Give requirement strings or lists of them.")
        if name.lstrip().startswith("-"):
            raise InvalidError(
                f"{where}: {name!r} is an option, not a package",
                fix="Give options as `extra_options=` or their own argument.",
            )
    return names


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidError(f"{name} must be text, got {value!r}")
    return value


def _absolute(remote: str) -> str:
    remote = os.fspath(remote)
    if not remote.startswith("/"):
        raise InvalidError(
            f"the remote path {remote!r} is not absolute", fix="Write it from the container's root, as /root/data."
        )
    if ".." in remote.split("/"):
        raise InvalidError(f"the remote path {remote!r} contains '..'")
    return remote


def _ignore(ignore: Any) -> Ignore:
    if callable(ignore):
        given: Ignore = ignore
        return given
    if isinstance(ignore, str) or not all(isinstance(pattern, str) for pattern in ignore):
        raise InvalidError(f"ignore must be a list of patterns or a function of the path, got {ignore!r}")
    return tuple(ignore)
