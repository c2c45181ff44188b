"""Stores of layers for tests: a base made of this machine's CPython once a session, wheels made by hand."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from squall.spec import ImageSpec, ImageStep
from squall_images import bases, host_base
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}"


def make_root(folder: Path) -> Path:
    """A root file system with Python, a shell and small tools."""
    host_base.make(folder, Path(sys.executable))
    return folder


def store_with_base(home: Path, root: Path) -> LayerFolder:
    """A folder of layers that has debian_slim for the Python of the tests."""
    folder = LayerFolder(home)
    bases.register(folder, f"debian_slim:{OWN}", root, Configuration(env=dict(host_base.ENV)))
    return folder


def step(kind: str, **arguments: object) -> ImageStep:
    """One step."""
    return ImageStep(kind, arguments)


def image(*steps: ImageStep, python: str = OWN) -> ImageSpec:
    """An image on debian_slim."""
    return ImageSpec(python, steps)


def pip(*packages: str, **arguments: object) -> ImageStep:
    """A step that asks no index. The builder finds wheels where UV_FIND_LINKS says."""
    return step("pip_install", packages=sorted(packages), extra_options="--no-index --offline", **arguments)


def wheel(folder: Path, name: str, version: str = "1.0", requires: str = "", extra: str = "") -> None:
    """A wheel with one module and one program of that name; `extra`: one more module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    files = {
        f"{name}.py": f"version = {version!r}\ndef main():\n    print(version)\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\nrun-{name} = {name}:main\n",
        **({f"{extra}.py": ""} if extra else {}),
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


def source_distribution(folder: Path, name: str) -> None:
    """A package without a wheel, whose build needs nothing but a builder that is its own."""
    import io
    import tarfile

    folder.mkdir(exist_ok=True)
    backend = (
        "import os, zipfile\n"
        "def build_wheel(folder, settings=None, metadata=None):\n"
        f"    name = '{name}-1.0-py3-none-any.whl'\n"
        f"    info = '{name}-1.0.dist-info'\n"
        f"    files = {{'{name}.py': 'built_as = %r' % os.uname().nodename, info + '/METADATA':"
        f" 'Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n',"
        " info + '/WHEEL': 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n'}\n"
        "    with zipfile.ZipFile(os.path.join(folder, name), 'w') as archive:\n"
        "        for path, text in files.items():\n"
        "            archive.writestr(path, text)\n"
        "        archive.writestr(info + '/RECORD', ''.join(p + ',,\\n' for p in [*files, info + '/RECORD']))\n"
        "    return name\n"
    )
    system = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    project = f'{system}[project]\nname = "{name}"\nversion = "1.0"\n'
    information = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    with tarfile.open(folder / f"{name}-1.0.tar.gz", "w:gz") as archive:
        for path, text in (("own.py", backend), ("pyproject.toml", project), ("PKG-INFO", information)):
            member = tarfile.TarInfo(f"{name}-1.0/{path}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
