"""Functions that travel by value: `serialized=True`. For nested functions and notebooks, which nobody can import.

The bundle gets the pickled function and a module of two lines that loads it: containers import that as any other.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from squall.errors import InvalidError, SerializationError
from squall.function import Function
from squall.origin import Declared, Neighbour

if TYPE_CHECKING:
    from squall.bundle import Source

LARGE_BYTES = 256 * 1024
MAX_BYTES = 16 * 1024 * 1024
NAME = "function"
"""Of the function in its module."""
MODULE = """\
import os, pickle
with open(os.path.splitext(__file__)[0] + ".pickle", "rb") as file:
    function = pickle.load(file)
"""


def source_of(raw: Any, folder: str, python_version: str) -> Source:
    """The module of a function as files in `folder`. Raises `InvalidError`, `SerializationError`."""
    from squall.bundle import ROOT, Source

    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if ".".join(python_version.split(".")[:2]) != here:
        raise InvalidError(
            f"{raw.__qualname__} is serialized by Python {here} and its image has Python {python_version}",
            fix=f'Use `Image.debian_slim("{here}")`, or define it at the top level of a file.',
        )
    data = pickled(raw)
    module = f"squall_serialized_{hashlib.sha256(data).hexdigest()[:16]}"
    files = {}
    for ending, content in (("py", MODULE.encode()), ("pickle", data)):
        path = os.path.join(folder, f"{module}.{ending}")
        with open(path, "wb") as file:
            file.write(content)
        files[f"{ROOT}/{module}.{ending}"] = path
    return Source(module, files)


def pickled(raw: Any) -> bytes:
    """The function with everything of its module that it uses."""
    cloudpickle: Any = importlib.import_module("cloudpickle")

    module = sys.modules.get(raw.__module__)
    by_value = module is not None and raw.__module__ != "__main__"
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        data = _dump(cloudpickle, raw)
    except Exception as error:
        raise SerializationError(
            f"{raw.__qualname__} cannot be serialized: {type(error).__name__}: {error}",
            fix="Make what it uses inside of it, or define it at the top level of a file without serialized=True.",
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    if len(data) > MAX_BYTES:
        raise InvalidError(
            f"{raw.__qualname__} has {len(data)} bytes with what it uses, at most {MAX_BYTES} are possible",
            fix="Give large values as arguments.",
        )
    if len(data) > LARGE_BYTES:
        warnings.warn(f"{raw.__qualname__} has {len(data)} bytes with what it uses", UserWarning, stacklevel=2)
    return data


def _dump(cloudpickle: Any, raw: Any) -> bytes:
    base: Any = cloudpickle.Pickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            # Functions of the same app have no id before it runs: in the container they are found by their names.
            if isinstance(value, Function) and isinstance(value._origin, Declared):
                return _neighbour, (value._origin.label, value.is_generator)
            return super().reducer_override(value)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=4).dump(raw)
    return buffer.getvalue()


def _neighbour(name: str, generator: bool) -> Function:
    """A function of the app that this container belongs to."""
    return Function(Neighbour(name, generator))
