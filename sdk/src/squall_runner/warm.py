"""What a forked container must mend of what it inherited: thread counts, random streams, temporary folder."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

_SET_THREADS = (
    # OpenBLAS under the names that numpy's and scipy's wheels and distributions give it.
    ("openblas", ("openblas_set_num_threads", "openblas_set_num_threads64_")),
    ("openblas", ("scipy_openblas_set_num_threads", "scipy_openblas_set_num_threads64_")),
    ("libmkl_rt", ("MKL_Set_Num_Threads",)),
    ("libgomp", ("omp_set_num_threads",)),
    ("libiomp5", ("omp_set_num_threads",)),
    ("libomp", ("omp_set_num_threads",)),
)


def after_fork() -> None:
    """Run once in a new container, before any code of the user's; imports nothing that was not imported."""
    _restore_threads()
    _reseed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        setattr(tempfile, "tempdir", None)  # noqa: B010  # mypy does not know it  # cached from the template's TMPDIR


def _reseed() -> None:
    """`random`, `uuid`, `secrets` and `ssl` differ by themselves; numpy and torch are equal in all forks."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()


def _restore_threads() -> None:
    """The template was held to one thread, or it could not have been forked."""
    count = int(os.environ.get("OMP_NUM_THREADS") or 1)
    if count <= 1:
        return
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.set_num_threads(count)
    if "numpy" not in sys.modules and torch is None:
        return
    for function in _setters():
        function(count)


def _setters() -> Iterator[Any]:
    try:
        ctypes = importlib.import_module("ctypes")
    except ImportError:
        return
    for path in _mapped_libraries():
        name = os.path.basename(path)
        for library, symbols in _SET_THREADS:
            if library in name:
                yield from _symbols(ctypes.CDLL(path), symbols)


def _symbols(library: Any, names: tuple[str, ...]) -> Iterator[Any]:
    for name in names:
        function = getattr(library, name, None)
        if function is not None:
            yield function


def _mapped_libraries() -> set[str]:
    try:
        with open("/proc/self/maps") as maps:
            lines = maps.readlines()
    except OSError:
        return set()
    return {line.split(None, 5)[5].strip() for line in lines if ".so" in line and line.count(" ") >= 5}
