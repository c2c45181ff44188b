"""Image: what a function's container has besides its code. An immutable chain of steps; building is the server's.

Owns bases, the order of steps and local files, and what becomes of the chain. The steps themselves are in
`image_packages` and `image_commands`. Local files are no part of the image unless they are copied: they travel with the
user's code (`bundle`), so that a changed file rebuilds nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

from squall import hosted, image_files, image_steps
from squall.errors import InvalidError
from squall.image_commands import CommandSteps, docker_arguments
from squall.image_files import Copied, Ignore, Later, LocalDir, LocalFile, LocalPython, LocalSource
from squall.image_packages import PackageSteps
from squall.image_steps import Finders, Withheld, WithheldVolumes
from squall.origin import refuse_client
from squall.unimplemented import CONDA_INSTEAD, NO_CLIENT, missing_classmethods

if TYPE_CHECKING:
    from squall.app import App
    from squall.secret import Secret
    from squall.spec import ImageSpec

__all__ = ["Ignore", "Image", "LocalDir", "LocalFile", "LocalPython", "LocalSource"]

PathLike = Union[str, "os.PathLike[str]"]
CONFIGURATION = frozenset({"env", "workdir", "entrypoint", "cmd", "shell"})
ATTACHED_BYTES = 64 << 20
LOCAL_FILES_LAST = (
    "Put `add_local_*` last: local files are attached when a container starts, after every build step. "
    "With `copy=True` they are a build step themselves."
)


def _now(arguments: dict[str, Any], find: Optional[Finders]) -> dict[str, Any]:
    found = {}
    for name, value in arguments.items():
        if isinstance(value, Later):
            found[name] = value.get()
        elif not isinstance(value, (Withheld, WithheldVolumes)):
            found[name] = value
        elif find is not None:
            found[name] = value.references(find)
    return found


class _Chain(NamedTuple):
    python_version: str
    """Empty: the one that the base has."""
    steps: tuple[tuple[str, dict[str, Any]], ...] = ()
    local: tuple[LocalSource, ...] = ()
    before: Optional[Later] = None
    """Spec of a published image that the steps go on from."""


class Image(PackageSteps, CommandSteps):
    """A recipe for containers: start with `Image.debian_slim()` and chain what you need.

    Every method returns a new image; nothing is built before a function that uses it runs or is deployed."""

    def __init__(self, chain: Optional[_Chain] = None) -> None:
        if chain is None:
            raise InvalidError("Image() is not a recipe", fix="Start with `squall.Image.debian_slim()`.")
        self._chain = chain

    # --- bases ---

    @classmethod
    def _from(cls, python: str, *steps: tuple[str, dict[str, Any]]) -> Image:
        return cls(_Chain(python, steps))

    @classmethod
    def debian_slim(cls, python_version: Optional[str] = None, *, force_build: bool = False) -> Image:
        """Debian with Python: the version that runs here unless said (`"3.12"`)."""
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        version = here if python_version is None else image_steps.python_version(python_version)
        forced = image_steps.forced(force_build)
        return cls._from(version, *([("debian_slim", forced)] if forced else []))

    @classmethod
    def from_registry(
        cls,
        tag: str,
        secret: Optional[Secret] = None,
        *,
        setup_dockerfile_commands: Sequence[str] = (),
        force_build: bool = False,
        add_python: Optional[str] = None,
        **others: Any,
    ) -> Image:
        """An image of a registry, by the name that `docker pull` takes. `add_python`: a Python for one without.

        `secret`: with REGISTRY_USERNAME and REGISTRY_PASSWORD; they are given to that registry alone."""
        image_steps.refuse("Image.from_registry", others)
        if not image_steps.text("the tag", tag).strip() or any(letter.isspace() for letter in tag):
            raise InvalidError(f"{tag!r} is not the name of an image", fix='Write it as "name:tag".')
        forced = image_steps.forced(force_build)
        login = image_steps.secrets("Image.from_registry", None if secret is None else [secret])
        image = cls._from("", ("from_registry", {"tag": tag, **login, **forced}))
        return image.dockerfile_commands(list(setup_dockerfile_commands))._with_python(add_python)

    @classmethod
    def from_dockerfile(
        cls,
        path: PathLike,
        *,
        context_dir: Optional[PathLike] = None,
        ignore: Optional[Ignore] = None,
        build_args: Optional[Mapping[str, str]] = None,
        force_build: bool = False,
        add_python: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        **others: Any,
    ) -> Image:
        """What a Dockerfile makes. Only files that its COPY and ADD lines name are sent, without what `ignore` matches.

        `ignore` not given: what .dockerignore says. It is read when the image is first needed."""
        from squall import dockerfiles

        image_steps.refuse("Image.from_dockerfile", others)
        file, ignored = os.fspath(path), None if ignore is None else image_files.ignore(ignore)
        folder = os.fspath(context_dir or ".")
        arguments: dict[str, Any] = {
            "text": Later(lambda: dockerfiles.read(file)),
            **docker_arguments("", None, None, build_args),
            "context": Copied(lambda: dockerfiles.context(dockerfiles.read(file), folder, ignored)),
            **image_steps.variables("Image.from_dockerfile", env),
            **image_steps.forced(force_build),
        }
        return cls._from("", ("from_dockerfile", arguments))._with_python(add_python)

    @classmethod
    def from_scratch(cls, *, force_build: bool = False) -> Image:
        """Nothing at all; fill it with `add_local_file(copy=True)`."""
        return cls._from("", ("from_scratch", image_steps.forced(force_build)))

    @classmethod
    def from_id(cls, image_id: str, client: None = None) -> Image:
        """An image that was built, by its id."""
        refuse_client(client)
        from squall import published_images

        return cls(_Chain("", before=Later(lambda: published_images.by_id(image_id))))

    @classmethod
    def from_name(cls, name: str, *, environment_name: Optional[str] = None, client: None = None) -> Image:
        """An image that was published, by its name (`"name"` or `"name:tag"`). Looked up when it is first needed."""
        refuse_client(client)
        from squall import published_images

        checked = published_images.checked_name(name)
        return cls(_Chain("", before=Later(lambda: published_images.by_name(checked, environment_name))))

    def _with_python(self, version: Optional[str]) -> Image:
        if version is None:
            return self
        python = image_steps.python_version(version)
        return Image(self._step("add_python", {"version": python})._chain._replace(python_version=python))

    def pipe(self, function: Callable[..., Image], *args: Any, **kwargs: Any) -> Image:
        """`function(self, ...)`: for recipes shared between images."""
        return function(self, *args, **kwargs)

    # --- local files ---

    def add_local_file(self, local_path: PathLike, remote_path: str, *, copy: bool = False) -> Image:
        """Attach a file from here, or copy it into a layer. A remote path that ends with a slash keeps its name."""
        return self._attach(image_files.file(local_path, remote_path), copy)

    def add_local_dir(
        self, local_path: PathLike, remote_path: str, *, copy: bool = False, ignore: Ignore = ()
    ) -> Image:
        """Attach a folder from here, or copy it into a layer. `ignore`: dockerignore patterns or a function of the
        path below the folder."""
        return self._attach(image_files.folder(local_path, remote_path, ignore), copy)

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Optional[Ignore] = None) -> Image:
        """Attach modules that are importable here, or copy them into a layer; by default their .py files."""
        return self._attach(image_files.python(modules, ignore), copy)

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
        except InvalidError:  # it depends on a file of the user's machine, or on a look-up
            return False

    def build(self, app: App) -> Image:
        """Build it now, for an app that is running or is looked up. Raises `ImageBuildError`."""
        from squall import published_images

        published_images.build(self, app)
        return self

    def publish(
        self,
        name: str,
        *,
        environment_name: Optional[str] = None,
        client: None = None,
        experimental_options: Optional[Mapping[str, Any]] = None,
    ) -> Image:
        """Build it and give it a name, for `Image.from_name`; a name that exists moves to this image."""
        refuse_client(client)
        hosted.take_out("Image.publish", {"experimental_options": experimental_options})
        from squall import published_images

        published_images.publish(self, name, environment_name)
        return self

    def spec(self, find: Optional[Finders] = None) -> ImageSpec:
        """The recipe as the builder gets it; `find` says where secrets and volumes of its steps are."""
        from squall.spec import ImageSpec, ImageStep

        own = tuple(ImageStep(kind, _now(arguments, find)) for kind, arguments in self._chain.steps)
        if self._chain.before is None:
            return ImageSpec(self._chain.python_version, own)
        before: ImageSpec = self._chain.before.get()
        return ImageSpec(before.python_version, (*before.steps, *own))

    def of_function(self) -> Image:
        """The same for containers of a function: copied files that no build step comes after are attached to them,
        which plain processes can have, too. Many bytes (ATTACHED_BYTES) stay a layer: what is attached goes up with the
        code.
        """
        steps, attached = list(self._chain.steps), list(self._chain.local)
        configuration: list[tuple[str, dict[str, Any]]] = []
        size = 0
        while steps and steps[-1][0] in {"add_local", *CONFIGURATION}:
            kind, arguments = steps.pop()
            if kind != "add_local":
                configuration.insert(0, (kind, arguments))
                continue
            size += arguments["files"].get()["bytes"]
            attached[:0] = arguments["files"].given
        image = Image(self._chain._replace(steps=(*steps, *configuration), local=tuple(attached)))
        return self if size > ATTACHED_BYTES or image.spec().needs_isolation else image

    @property
    def object_id(self) -> str:
        """`im-...`: the content address of the recipe."""
        return self.spec().id

    @property
    def is_hydrated(self) -> bool:
        """True: the id of an image is known without a server."""
        return True

    @property
    def local_sources(self) -> tuple[LocalSource, ...]:
        """What is attached from here."""
        return self._chain.local

    @property
    def copied(self) -> tuple[Copied, ...]:
        """Files of this machine that build steps need in the blob store."""
        values = (value for _, arguments in self._chain.steps for value in arguments.values())
        return tuple(value for value in values if isinstance(value, Copied))

    def _step(self, kind: str, arguments: dict[str, Any], force_build: bool = False) -> Image:
        if self._chain.local:
            raise InvalidError(f"the build step {kind} comes after add_local_*", fix=LOCAL_FILES_LAST)
        step = (kind, {**arguments, **image_steps.forced(force_build)})
        return Image(self._chain._replace(steps=(*self._chain.steps, step)))

    def _attach(self, source: LocalSource, copy: bool) -> Image:
        if copy:
            return self._step("add_local", {"files": image_files.sources(source)})
        return Image(self._chain._replace(local=(*self._chain.local, source)))

    def __repr__(self) -> str:
        steps = "".join(f".{kind}(...)" for kind, _ in self._chain.steps)
        return (
            f'Image.debian_slim("{self._chain.python_version}"){steps}'
            if self._chain.python_version
            else f"Image{steps}"
        )


_REGISTRIES = "Use `Image.from_registry(tag, secret=...)` with a user and a password of that registry."
_PRIVATE = "Use `pip_install` with an index of your own, or copy the repository with `add_local_dir(copy=True)`."
for _name, _missing in missing_classmethods(
    "Image",
    {
        "micromamba": CONDA_INSTEAD,
        "micromamba_install": CONDA_INSTEAD,
        "from_aws_ecr": _REGISTRIES,
        "from_gcp_artifact_registry": _REGISTRIES,
        "pip_install_private_repos": _PRIVATE,
        "hydrate": "Use `image.build(app)`: it builds now.",
        "logs": "The log of a build is shown while it runs; `squall image inspect ID` says why one failed.",
        "get_dashboard_url": "Use `squall image inspect ID`.",
        "client": NO_CLIENT,
    },
).items():
    setattr(Image, _name, _missing)
