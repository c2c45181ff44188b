"""The interpreter as user code finds it: path, variables, working directory. Starts from `python -I -S`."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import time

from squall_runner.settings import Settings


def prepare(settings: Settings) -> None:
    """Set up everything that user code may look at while it is imported."""
    if settings.whole_env:
        os.environ.clear()
    adjust(settings)
    time.tzset()
    sys.argv = [settings.module]
    if settings.prefix:
        sys.prefix = sys.exec_prefix = settings.prefix  # with -S nobody else does it
    # What came with the interpreter, then the folder of `squall` that the boot line added: before the image,
    # so that another squall installed there does not shadow the one that this platform speaks.
    sys.path.insert(0, settings.code_root)
    for folder in settings.site_packages or _own_packages():
        _add_packages(folder)
    if settings.picklers:
        sys.path.append(settings.picklers)
    _add_site_builtins()


def adjust(settings: Settings) -> None:
    """What differs per container: variables and working directory."""
    for name in settings.unset:
        os.environ.pop(name, None)
    os.environ.update(settings.env)
    os.chdir(settings.cwd)


def _own_packages() -> list[str]:
    """Where this interpreter's packages are: what the site module, which -S leaves out, would find."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    folders = [f"{sys.prefix}/lib/{version}/site-packages", f"{sys.prefix}/lib64/{version}/site-packages"]
    # Debian's interpreter, and what its pip installs.
    folders += [f"/usr/local/lib/{version}/dist-packages", "/usr/lib/python3/dist-packages"]
    return [folder for folder in folders if os.path.isdir(folder)]


def _add_packages(folder: str) -> None:
    if _path_files(folder):
        importlib.import_module("site").addsitedir(folder)
    else:
        sys.path.append(folder)


def _path_files(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    # _virtualenv.pth only guards against distutils settings; every environment has it, and it costs an
    # import.
    return [name for name in names if name.endswith(".pth") and name != "_virtualenv.pth"]


def _add_site_builtins() -> None:
    """`exit()` and `quit()`, which `-S` leaves out."""
    quitter = importlib.import_module("_sitebuiltins").Quitter
    for name in ("exit", "quit"):
        setattr(builtins, name, quitter(name, "Ctrl-D (i.e. EOF)"))
