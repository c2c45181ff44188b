"""Values in dicts and queues: encoded here, opaque on the server, large ones in its blob store."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Optional

from squall.errors import RequestSizeError, SerializationError

if TYPE_CHECKING:
    from squall.client import Client
    from squall_runner.frames import Frame

HEADERS = {"Content-Type": "application/vnd.squall.frames"}


def encoded(client: Client, value: Any, what: str, most_bytes: int) -> tuple[dict[str, Any], bytes]:
    """Frame metadata and payload of a value. Raises `SerializationError`, `RequestSizeError`."""
    from squall import payload

    try:
        made = payload.encode(value)
    except Exception as error:
        raise SerializationError(f"{what} (a {type(value).__name__}) cannot be pickled: {error}") from error
    try:
        if made.size > most_bytes:
            raise RequestSizeError(f"{what} has {made.size} bytes encoded, more than {most_bytes}", fix="Use a Volume.")
        if made.inline is not None:
            return {}, made.inline
        return {"blob": client.upload(made.sha256, made.body)}, b""
    finally:
        made.close()


def decoded(client: Client, meta: dict[str, Any], data: bytes) -> Any:
    """The inverse."""
    from squall import payload
    from squall.http_api.protocol import parse_blob_ref

    blob: Optional[str] = meta.get("blob")
    if blob is None:
        return payload.decode("pickle", bytes(data))
    sha256, size = parse_blob_ref(blob)
    with payload.receiving_file(size) as file:

        def restart() -> None:
            file.seek(0)
            file.truncate()

        client.download(sha256, file.write, restart)
        return payload.decode_file("pickle", file)


def pickled_key(key: Any, what: str) -> bytes:
    """A key as bytes, the same for equal keys of one type. Raises `SerializationError`."""
    import pickle

    try:
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, 4)
        pickler.fast = True  # without memo: equal keys are equal bytes, whether their parts are one object or two
        pickler.dump(key)
        return buffer.getvalue()
    except Exception as error:
        raise SerializationError(f"{what} {key!r:.100} cannot be a key: {error}") from error


def answer_frames(body: bytes) -> Iterator[Frame]:
    """The frames of a whole answer."""
    from squall_runner import frames

    return iter(frames.Decoder().feed(body))
