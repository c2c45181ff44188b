"""The bucket behind a mount: its objects by path. Translates the store's errors to what system calls return.

Owns nothing of what is mounted. Methods block, and end: what the store does not answer in time is EIO.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import IO, Any, NamedTuple

import obstore
from obstore import exceptions
from obstore.store import S3Store

RETRIES: Any = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"max_backoff": timedelta(seconds=4)},
}
TIMEOUTS: Any = {"connect_timeout": "5s", "timeout": "120s", "read_timeout": "15s"}
PART_BYTES = 8 << 20
PARTS_AT_ONCE = 4
MAX_NAME_BYTES = 255

# The first that fits; obstore raises ValueError for a path that no object can have.
_ERRNO: tuple[tuple[type[Exception], int], ...] = (
    (FileNotFoundError, errno.ENOENT),
    (exceptions.PermissionDeniedError, errno.EACCES),
    (exceptions.UnauthenticatedError, errno.EACCES),
    (exceptions.PreconditionError, errno.ESTALE),
    (exceptions.NotSupportedError, errno.EOPNOTSUPP),
    (exceptions.InvalidPathError, errno.EINVAL),
    (ValueError, errno.EINVAL),
    (exceptions.BaseError, errno.EIO),
    (OSError, errno.EIO),
)
_STATUS = re.compile(r"status code: (\d{3})")
_SAID = re.compile(r"status code: (\d{3}[^:\n]*)")
_BY_STATUS = {"401": errno.EACCES, "403": errno.EACCES, "404": errno.ENOENT}
"""obstore has no class of its own for these when it lists."""
_SILENT = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketConfig:
    """Where a bucket is, and with which rights."""

    bucket: str
    endpoint: str = ""
    """URL; empty = Amazon's."""
    prefix: str = ""
    """What is mounted of it: empty, or with a slash at the end."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its secret: keys, region. Empty: requests are not signed."""
    requester_pays: bool = False
    force_path_style: bool = False
    proxy: str = ""
    """The only way out; empty = directly."""


class Entry(NamedTuple):
    """An object as it was when somebody looked."""

    size: int
    mtime: float
    etag: str | None


class Bucket:
    """One bucket, below its prefix. Paths have no slash at either end; "" is the mounted folder itself."""

    def __init__(self, config: BucketConfig, say: Callable[[str], None]) -> None:
        self._prefix = config.prefix
        self._say = say
        self._said = ""
        self.store = opened(config)

    def check(self) -> None:
        """Raises `OSError` if nothing can be listed there."""
        with self._errors("", told=False):
            for _ in obstore.list(self.store, prefix=self._prefix.rstrip("/") or None, chunk_size=1):
                return

    def find(self, path: str) -> Entry | None:
        """An object; None if there is none."""
        with self._errors(path):
            try:
                return _entry(obstore.head(self.store, self._key(path)))
            except FileNotFoundError:
                return None

    def is_folder(self, path: str) -> bool:
        """Whether there is an object below it."""
        with self._errors(path):
            for _ in obstore.list(self.store, prefix=self._key(path), chunk_size=1):
                return True
        return False

    def list(self, path: str) -> dict[str, Entry | None]:
        """What is in a folder, by name; None for folders. A folder hides the object of its name."""
        folder = self._key(path).rstrip("/")
        above = f"{folder}/" if folder else ""
        with self._errors(path):
            found = obstore.list_with_delimiter(self.store, folder or None)
        entries: dict[str, Entry | None] = {}
        for each in found["objects"]:
            if each["path"].startswith(above):
                entries[each["path"][len(above) :]] = _entry(each)
        for below in found["common_prefixes"]:
            entries[below.rstrip("/")[len(above) :]] = None
        usual = {name: entry for name, entry in entries.items() if name and "/" not in name and _fits(name)}
        if len(usual) < len(entries) - ("" in entries):
            self._tell(f"/{path} has names of more than {MAX_NAME_BYTES} bytes, which cannot be shown")
        return usual

    def read(self, path: str, entry: Entry, start: int, end: int) -> bytes:
        """Some of an object, as it was: ESTALE when it has changed."""
        options: Any = {"range": (start, end)}
        if entry.etag:
            options["if_match"] = entry.etag
        with self._errors(path):
            return bytes(obstore.get(self.store, self._key(path), options=options).bytes())

    def write(self, path: str, content: IO[bytes]) -> Entry:
        """Store a file as an object: in whole, or nothing is changed."""
        key = self._key(path)
        with self._errors(path):
            obstore.put(self.store, key, content, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
            return _entry(obstore.head(self.store, key))

    def remove(self, path: str) -> None:
        """An object that is not there is removed, too."""
        with self._errors(path), contextlib.suppress(FileNotFoundError):
            obstore.delete(self.store, self._key(path))

    def copy(self, source: str, target: str) -> None:
        """Within the bucket; no bytes are moved."""
        with self._errors(source):
            obstore.copy(self.store, self._key(source), self._key(target))

    def _key(self, path: str) -> str:
        return self._prefix + path

    @contextlib.contextmanager
    def _errors(self, path: str, told: bool = True) -> Iterator[None]:
        try:
            yield
        except (exceptions.BaseError, ValueError, OSError) as error:
            code = _code(error)
            if told and code not in _SILENT:
                self._tell(f"{path}: {first_line(error)}")
            raise OSError(code, first_line(error)) from error

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(text)


def opened(config: BucketConfig) -> S3Store:
    """The store. Raises `ValueError` for an endpoint that is none, and for a secret without keys."""
    said = config.variables
    keys: dict[str, Any] = {
        "access_key_id": said.get("AWS_ACCESS_KEY_ID") or said.get("GOOGLE_ACCESS_KEY_ID"),
        "secret_access_key": said.get("AWS_SECRET_ACCESS_KEY") or said.get("GOOGLE_ACCESS_KEY_SECRET"),
        "session_token": said.get("AWS_SESSION_TOKEN"),
    }
    chosen: Any = {name: value for name, value in keys.items() if value}
    if said and not {"access_key_id", "secret_access_key"} <= chosen.keys():
        raise ValueError("its secret has no AWS_ACCESS_KEY_ID or no AWS_SECRET_ACCESS_KEY")
    if not chosen:
        chosen["skip_signature"] = True  # else the store would look for the machine's own rights
    if config.endpoint:
        chosen["endpoint"] = config.endpoint.rstrip("/")
    elif not config.force_path_style and "." not in config.bucket:  # a dot is not in Amazon's certificate
        chosen["virtual_hosted_style_request"] = True
    if config.requester_pays:
        chosen["request_payer"] = True
    chosen["region"] = said.get("AWS_REGION") or said.get("AWS_DEFAULT_REGION") or "us-east-1"
    client: Any = {**TIMEOUTS, "allow_http": config.endpoint.startswith("http://")}
    if config.proxy:
        client["proxy_url"] = config.proxy
    try:
        return S3Store(config.bucket, config=chosen, client_options=client, retry_config=RETRIES)
    except exceptions.BaseError as error:
        raise ValueError(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What it says, without the request's whole history."""
    if status := _SAID.search(str(error)):
        return f"it answered {status[1].strip()}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]


def _code(error: Exception) -> int:
    status = _STATUS.search(str(error)) if isinstance(error, exceptions.GenericError) else None
    if status is not None and status[1] in _BY_STATUS:
        return _BY_STATUS[status[1]]
    return next(code for kind, code in _ERRNO if isinstance(error, kind))


def _entry(meta: Any) -> Entry:
    return Entry(meta["size"], meta["last_modified"].timestamp(), meta.get("e_tag"))


def _fits(name: str) -> bool:
    return len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES
