"""Values to bytes and back. Owns what is pickled how; moves nothing.

Plain pickle first, cloudpickle (imported when needed) for what plain pickle refuses: lambdas, nested functions, classes
of an interactive session. Protocol 4, because callers and containers may be different Pythons. Classes and functions
of the user's script go by reference to the module name that the script has in containers: both ends mean one class.
Large values are pickled straight into a temporary file: beside the value itself no second copy of it is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import IO, Any, Callable, NamedTuple, Optional

from squall.connection import Body, FileBody
from squall.errors import DeserializationError, RequestSizeError, SerializationError
from squall.spec import INLINE_LIMIT_BYTES, MAX_PAYLOAD_BYTES, Encoding

PROTOCOL = 4
MEMORY_BYTES = 4 * 1024 * 1024
"""Values above this go through a temporary file."""

Write = Callable[[bytes], Any]


class Spool:
    """Where a pickler writes: memory at first, a temporary file when it gets long. Hashes what becomes a blob."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._digest: Optional[Any] = None
        self.file: Optional[IO[bytes]] = None
        self.size = 0

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        length = len(data)
        self.size += length
        if self.size > MAX_PAYLOAD_BYTES:
            raise RequestSizeError(
                f"a value of more than {MAX_PAYLOAD_BYTES} bytes cannot be sent",
                fix="Put the data where the function can read it and pass its name.",
            )
        if self.file is None and self.size > MEMORY_BYTES:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the payload
            self._digest = hashlib.sha256()
            earlier, self._parts = self._parts, []
            for part in earlier:
                self._append(part)
        self._append(data)
        return length

    def _append(self, data: bytes) -> None:
        if self.file is None:
            self._parts.append(bytes(data))
        else:
            self.file.write(data)
            assert self._digest is not None
            self._digest.update(data)

    def payload(self) -> Payload:
        """What was written."""
        if self.file is not None:
            self.file.flush()
            assert self._digest is not None
            return Payload(FileBody(self.file, self.size), self._digest.hexdigest(), self.size)
        data = b"".join(self._parts)
        return Payload(data, hashlib.sha256(data).hexdigest() if self.size > INLINE_LIMIT_BYTES else "", self.size)


class Payload(NamedTuple):
    """An encoded value."""

    body: Body
    sha256: str
    """Only of payloads that are too large to travel inline."""
    size: int

    @property
    def inline(self) -> Optional[bytes]:
        """The bytes, or None if they must go through the blob store."""
        return self.body if isinstance(self.body, bytes) and not self.sha256 else None

    def close(self) -> None:
        """Remove the temporary file if there is one."""
        if isinstance(self.body, FileBody):
            self.body.file.close()


# --- encoding --------------------------------------------------------------------------------------------------------


class _ModuleReference:
    """Pickles as a call of importlib.import_module, so that the reader needs nothing of squall."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self._name,)


class _Attribute:
    """Pickles as getattr(owner, name)."""

    def __init__(self, owner: Any, name: str) -> None:
        self._arguments = (owner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self._arguments


def _script_reference(value: Any, script: str) -> Optional[tuple[Any, ...]]:
    """How to pickle something that the user's script defines, if it can be found by name there."""
    found: Any = sys.modules.get("__main__")
    *outer, last = value.__qualname__.split(".")
    owner: Any = _ModuleReference(script)
    for name in outer:
        found, owner = getattr(found, name, None), _Attribute(owner, name)
    if getattr(found, last, None) is not value:
        return None
    return getattr, (owner, last)


class _NotPlain(Exception):
    """The value needs cloudpickle."""


class _PlainPickler(pickle.Pickler):
    def __init__(self, file: Any, script: Optional[str]) -> None:
        super().__init__(file, PROTOCOL)
        self._script = script

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (type, types.FunctionType)) and value.__module__ == "__main__":
            reference = _script_reference(value, self._script) if self._script else None
            if reference is None:
                raise _NotPlain
            return reference
        return NotImplemented


_cloud_pickler: Optional[type[Any]] = None


def _cloud(file: Any, script: Optional[str]) -> Any:
    global _cloud_pickler  # noqa: PLW0603 - a class that can only be made once cloudpickle is imported
    if _cloud_pickler is None:
        import cloudpickle  # type: ignore[import-untyped]

        class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
            script: Optional[str] = None

            def reducer_override(self, value: Any) -> Any:
                if self.script and isinstance(value, (type, types.FunctionType)) and value.__module__ == "__main__":
                    reference = _script_reference(value, self.script)
                    if reference is not None:
                        return reference
                return super().reducer_override(value)

        _cloud_pickler = CloudPickler
    pickler = _cloud_pickler(file, PROTOCOL)
    pickler.script = script
    return pickler


def encode(value: Any, script: Optional[str] = None) -> Payload:
    """`value` as a payload. `script`: name that the user's `__main__` has in the container, if it is there.

    Raises whatever the pickler raises; `encode_arguments` makes an error of it that names the argument."""
    spool = Spool()
    try:
        _PlainPickler(spool, script).dump(value)
        return spool.payload()
    except (_NotPlain, pickle.PicklingError, AttributeError, TypeError):
        if spool.file is not None:
            spool.file.close()
    spool = Spool()
    try:
        _cloud(spool, script).dump(value)
    except BaseException:
        if spool.file is not None:
            spool.file.close()
        raise
    return spool.payload()


def encode_arguments(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    script: Optional[str],
    names: Callable[[], Sequence[str]],
    function: str,
) -> Payload:
    """The arguments of one input. Raises `SerializationError` naming the argument; `names` gives parameter names."""
    try:
        return encode((tuple(args), dict(kwargs)), script)
    except RequestSizeError:
        raise
    except Exception as error:
        raise _culprit(args, kwargs, script, names(), function, error) from error


def _culprit(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    script: Optional[str],
    names: Sequence[str],
    function: str,
    error: Exception,
) -> SerializationError:
    labelled = [(names[i] if i < len(names) else f"number {i + 1}", value) for i, value in enumerate(args)]
    for name, value in [*labelled, *kwargs.items()]:
        try:
            encode(value, script).close()
        except Exception as own:  # noqa: BLE001 - __reduce__ and __getstate__ are the user's code
            kind = type(value).__name__
            return SerializationError(
                f"argument {name} of {function}() (a {kind}) cannot be pickled: {own}", argument=name
            )
    return SerializationError(f"the arguments of {function}() cannot be pickled: {error}")


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(encoding: str, data: bytes) -> Any:
    """The value in an inline payload. Raises `DeserializationError`."""
    if encoding == Encoding.PICKLE.value:
        with _loading():
            return pickle.loads(data)  # noqa: S301 - the user's own function made it
    with _loading():
        if encoding == Encoding.JSON.value:
            return json.loads(data)
        if encoding == Encoding.MSGPACK.value:
            import msgpack  # type: ignore[import-untyped]

            return msgpack.unpackb(data)
    raise DeserializationError(f"a value came in the unknown encoding {encoding!r}")


def decode_file(encoding: str, file: IO[bytes]) -> Any:
    """The value in a file, without a second copy of its bytes where the encoding allows it."""
    file.seek(0)
    if encoding == Encoding.PICKLE.value:
        with _loading():
            return pickle.load(file)  # noqa: S301 - the user's own function made it
    return decode(encoding, file.read())


def receiving_file(size: int) -> IO[bytes]:
    """A file to receive a blob of `size` bytes in."""
    return tempfile.TemporaryFile() if size > MEMORY_BYTES else io.BytesIO()


@contextlib.contextmanager
def _loading() -> Any:
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise DeserializationError(f"a value arrived that cannot be loaded here: {error}") from error
    except Exception as error:
        raise DeserializationError(
            f"a value arrived that cannot be loaded here: {type(error).__name__}: {error}"
        ) from error


def script_module() -> Optional[str]:
    """The name under which the user's `__main__` is imported in containers; None in an interactive session."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m package.module
        name: str = spec.name
        return name
    file = getattr(main, "__file__", None)
    return os.path.splitext(os.path.basename(file))[0] if file else None
