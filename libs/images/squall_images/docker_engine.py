"""A Docker engine as far as builds need one: Dockerfiles become images, images become archives of their layers.

A client of the Engine API on the standard library; blocks, and says line by line what the engine says. Knows nothing of
layers on disk. The build is BuildKit's (`version=2`), which needs no session for what is asked of it here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from squall.errors import ImageBuildError

API = "/v1.41"
CHUNK_BYTES = 1 << 20
DOCKERFILE = ".squall.Dockerfile"
QUIET_S = 3600.0
MAX_LINE_BYTES = 16 << 20
_EXIT_CODE = re.compile(r"exit code: (\d+)")

OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """An image of the engine."""

    image_id: str
    layers: tuple[str, ...]
    """Digests of their uncompressed archives, bottom first."""
    config: Mapping[str, Any]
    named: bool
    """It has a name: somebody else's, too."""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=QUIET_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DockerEngine:
    """One engine, for one thing after the other: a connection of its own for each, which `abort` ends."""

    def __init__(self, host: str, network: str = "none") -> None:
        """`host` as in DOCKER_HOST: `unix:///path` or `tcp://host:port`."""
        self._place = urlsplit(host)
        self._network = network
        self._running: set[http.client.HTTPConnection] = set()

    def abort(self) -> None:
        """End what is under way: its callers get an error, the engine stops the build."""
        for connection in list(self._running):
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def build(self, text: str, context: Path, arguments: Mapping[str, str], on_text: OnText) -> str:
        """The id of the image that a Dockerfile makes of a context (a tar without it). Raises `ImageBuildError`."""
        query = {
            "version": "2",
            "dockerfile": DOCKERFILE,
            "buildargs": json.dumps(dict(arguments)),
            "networkmode": self._network,
            "rm": "1",
        }
        path = f"/build?{urlencode(query)}"
        with context.open("rb") as body, self._open("POST", path, body, "application/x-tar") as answer:
            return _built(answer, on_text)

    def inspect(self, image: str) -> Inspected | None:
        """What it is; None if the engine has none of that name."""
        try:
            with self._open("GET", f"/images/{quote(image, safe='')}/json") as answer:
                found = json.load(answer)
        except _NotThere:
            return None
        return Inspected(
            image_id=str(found["Id"]),
            layers=tuple(map(str, found["RootFS"].get("Layers") or ())),
            config=found.get("Config") or {},
            named=bool(found.get("RepoTags")),
        )

    def save(self, image: str, wanted: Sequence[str], folder: Path) -> dict[str, Path]:
        """Archives of some of its layers, checked by their digests. Raises `ImageBuildError` if one is missing."""
        found: dict[str, Path] = {}
        with (
            self._open("GET", f"/images/{quote(image, safe='')}/get") as answer,
            tarfile.open(fileobj=answer, mode="r|") as archive,
        ):
            for number, member in enumerate(archive):
                if member.isfile() and (source := archive.extractfile(member)) is not None:
                    path = folder / f"layer-{number}.tar"
                    name = _copied(source, path)
                    if name in wanted and name not in found:
                        found[name] = path
                    else:
                        path.unlink()
        missing = set(wanted) - set(found)
        if missing:
            raise ImageBuildError(f"the engine did not give {len(missing)} layers of {image}")
        return found

    def load_root(self, root: IO[bytes], name: str, tag: str) -> None:
        """Make an image of one layer out of an archive of a root file system."""
        query = urlencode({"fromSrc": "-", "repo": name, "tag": tag})
        with self._open("POST", f"/images/create?{query}", root, "application/x-tar") as answer:
            for line in answer:
                said = json.loads(line)
                if "error" in said:
                    raise ImageBuildError(f"the engine did not take the image so far: {said['error']}")

    def tags(self, name: str) -> list[str]:
        """Tags of a name that the engine has."""
        query = urlencode({"filters": json.dumps({"reference": [name]})})
        with self._open("GET", f"/images/json?{query}") as answer:
            names = [str(each) for image in json.load(answer) for each in image.get("RepoTags") or ()]
        return [each.partition(":")[2] for each in names if each.startswith(f"{name}:")]

    def remove(self, image: str) -> None:
        """Let go of its name; the engine's cache of the build stays."""
        path = f"/images/{quote(image, safe='')}?noprune=true"
        with contextlib.suppress(_NotThere), self._open("DELETE", path):
            pass

    @contextlib.contextmanager
    def _open(
        self, method: str, path: str, body: IO[bytes] | None = None, kind: str = "application/json"
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        self._running.add(connection)
        try:
            headers = {"Content-Type": kind}
            # A body without a known length (a pipe) goes out in chunks.
            connection.request(method, f"{API}{path}", body, headers, encode_chunked=_chunked(body, headers))
            answer = connection.getresponse()
            if answer.status == 404:
                raise _NotThere(f"the engine has no {path}")
            if answer.status >= 400:
                told = answer.read(2000).decode("utf-8", "replace")
                raise ImageBuildError(f"the container engine refused {method} {path.partition('?')[0]}: {told}")
            yield answer
        except (OSError, http.client.HTTPException, tarfile.TarError) as error:
            raise ImageBuildError(
                f"the container engine broke off: {error!r}",
                fix="Look whether it runs at the address in SQUALL_BUILDER_DOCKER_HOST.",
            ) from error
        finally:
            self._running.discard(connection)
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._place.scheme == "unix":
            return _Unix(self._place.path)
        return http.client.HTTPConnection(self._place.netloc, timeout=QUIET_S)


class _NotThere(ImageBuildError):
    """The engine does not have it."""


def write_context(folder: Path | None, text: str, target: Path) -> None:
    """The archive that a build is sent: files below a folder, and the Dockerfile.

    In GNU's format: BuildKit takes the head of Python's default one for the text of a Dockerfile."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        if folder is not None:
            archive.add(folder, arcname=".")
        own = target.with_suffix(".Dockerfile")
        own.write_text(text)
        archive.add(own, arcname=DOCKERFILE)
        own.unlink()


def _chunked(body: IO[bytes] | None, headers: dict[str, str]) -> bool:
    if body is None:
        return False
    found = os.fstat(body.fileno())
    if stat.S_ISREG(found.st_mode):
        headers["Content-Length"] = str(found.st_size)
        return False
    headers["Transfer-Encoding"] = "chunked"
    return True


def _copied(source: IO[bytes], path: Path) -> str:
    seen = hashlib.sha256()
    with path.open("wb") as target:
        while chunk := source.read(CHUNK_BYTES):
            seen.update(chunk)
            target.write(chunk)
    return f"sha256:{seen.hexdigest()}"


# --- what the engine says while it builds ---


def _built(answer: http.client.HTTPResponse, on_text: OnText) -> str:
    image = ""
    kept: list[str] = []
    while line := answer.readline(MAX_LINE_BYTES):
        said = json.loads(line)
        if said.get("id") == "moby.buildkit.trace":
            for text in _trace(base64.b64decode(said["aux"])):
                kept = [*kept[-59:], text]
                on_text(text)
        elif said.get("id") == "moby.image.id":
            image = str(said["aux"]["ID"])
        elif "error" in said:
            found = _EXIT_CODE.search(str(said["error"]))
            code, output = int(found[1]) if found else 1, "\n".join(kept)
            raise ImageBuildError(
                f"the Dockerfile failed: {said['error']}\n{output}",
                step="dockerfile",
                exit_code=code,
                output=output,
            )
    if not image:
        raise ImageBuildError("the container engine ended the build without an image")
    return image


def _trace(message: bytes) -> Iterator[str]:
    """Lines of a `moby.buildkit.v1.StatusResponse`: vertexes (1: name 3, cached 4, completed 6) and logs (3: msg 4)."""
    for number, value in _fields(message):
        if number not in (1, 3) or not isinstance(value, bytes):
            continue
        own = dict(_fields(value))
        if number == 3:
            yield from _text(own.get(4)).splitlines()
        elif 6 in own and not _text(own.get(3)).startswith("[internal]"):
            yield f"{'cached: ' if own.get(4) else ''}{_text(own.get(3))}"


def _text(value: int | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protobuf message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key & 7 == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, place = _varint(message, place)
        else:
            size = 8 if key & 7 == 1 else 4
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place
