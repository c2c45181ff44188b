"""A client of OCI registries: manifests and blobs, each checked against its digest. Knows nothing of layers on disk.

Blocks; callers use threads. Names no registry: the default is a setting. Of the protocol it has what pulling and
pushing need; why no library: docs/decisions/0035-images-as-native-layers.md.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import math
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from squall.errors import DataLossError, ImageBuildError
from squall_images.outward import Guard

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
MAX_MANIFEST_BYTES = 4 << 20
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
CREDENTIALS = (
    "Give yours as `from_registry(tag, secret=...)`. Those of the operator (SQUALL_BUILDER_REGISTRY_AUTH) are used for "
    "names that SQUALL_BUILDER_REGISTRY_SHARED lists."
)
BROKEN = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
"""What networks do; not everything that the system says, such as that a disk is full."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d+)?")
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is in a registry."""

    url: str
    """Scheme and host."""
    repository: str
    reference: str = "latest"
    """A tag or a digest."""

    def __str__(self) -> str:
        return f"{self.url.partition('://')[2]}/{self.repository}:{self.reference}"


def place_of(name: str, default: str) -> Place:
    """`[host/]name[:tag][@digest]`. `default`: `[http://]host[/prefix]` for names without a host; empty = none."""
    rest, _, pinned = name.partition("@")
    first, slash, below = rest.partition("/")
    own_host = slash and ("." in first or ":" in first or first == "localhost")
    if own_host:
        url, path = f"{_scheme(first, default)}://{first}", below
    elif default:
        scheme, _, tail = default.rpartition("://")
        host, _, prefix = tail.partition("/")
        url, path = f"{scheme or 'https'}://{host}", "/".join(filter(None, (prefix.strip("/"), rest)))
    else:
        raise ImageBuildError(
            f"{name!r} names no registry, and no default is set",
            fix="Write it with its registry (`host/name:tag`), or set SQUALL_BUILDER_REGISTRY.",
        )
    repository, _, tag = path.partition(":")
    if (
        not _HOST.fullmatch(url.partition("://")[2])
        or not _NAME.fullmatch(repository)
        or (pinned and not _DIGEST.fullmatch(pinned))
    ):
        raise ImageBuildError(f"{name!r} is not the name of an image", fix='Write it as "name:tag".')
    return Place(url, repository, pinned or tag or "latest")


def _scheme(host: str, default: str) -> str:
    """HTTPS, unless the default registry is meant and says otherwise: users name hosts, operators trust them."""
    return "http" if f"{default}/".startswith(f"http://{host}/") else "https"


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image's manifest and the digest that its bytes have."""

    digest: str
    config: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]


@dataclass(slots=True)
class Registry:
    """Requests to any registries, with tokens as they ask for them."""

    auths: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Base64 of `user:password` by host."""
    guard: Guard | None = None
    """For registries that users name; None: those of the operator."""
    until: float = math.inf
    """On the monotonic clock: when what users name has to be here."""
    _tokens: dict[str, str] = field(default_factory=dict, repr=False)
    _opener: urllib.request.OpenerDirector | None = None

    # --- reading ---

    def manifest(self, place: Place, machine: str) -> Manifest:
        """The manifest for a machine of that architecture. Raises `ImageBuildError`, `DataLossError`."""
        body, digest = self._manifest(place)
        found = _json(body)
        try:
            if "manifests" in found:
                chosen = _for_machine(found["manifests"], machine)
                if chosen is None:
                    raise ImageBuildError(f"{place} has no image for {machine}")
                body, digest = self._manifest(Place(place.url, place.repository, chosen))
                found = _json(body)
            return Manifest(digest, found["config"], tuple(found["layers"]))
        except (AttributeError, KeyError, TypeError):
            raise not_an_image(place) from None

    def _manifest(self, place: Place) -> tuple[bytes, str]:
        accepted = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
        with self._open("GET", place, f"manifests/{place.reference}", accepted) as answer:
            body = answer.read(MAX_MANIFEST_BYTES + 1)
        if len(body) > MAX_MANIFEST_BYTES:
            raise ImageBuildError(f"the manifest of {place} has more than {MAX_MANIFEST_BYTES} bytes")
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if place.reference.startswith("sha256:") and place.reference != digest:
            raise _mismatch(place, place.reference, digest)
        return body, digest

    def blob(self, place: Place, digest: str, target: IO[bytes], most_bytes: int = 0) -> int:
        """Write a blob; its bytes, no more than `most_bytes` (0: any number). Raises `DataLossError` if they are not
        what the digest says."""
        if not _DIGEST.fullmatch(digest):
            raise ImageBuildError(f"{digest!r} is not a digest that can be checked")
        seen, size = hashlib.sha256(), 0
        with self._open("GET", place, f"blobs/{digest}", {}) as answer:
            while chunk := answer.read(CHUNK_BYTES):
                seen.update(chunk)
                target.write(chunk)
                size += len(chunk)
                if most_bytes and size > most_bytes:
                    raise ImageBuildError(f"a part of {place} has more than {most_bytes >> 20} MiB")
        if f"sha256:{seen.hexdigest()}" != digest:
            raise _mismatch(place, digest, f"sha256:{seen.hexdigest()}")
        return size

    def text(self, place: Place, digest: str) -> bytes:
        """A small blob."""
        import io

        target = io.BytesIO()
        self.blob(place, digest, target, MAX_MANIFEST_BYTES)
        return target.getvalue()

    # --- writing ---

    def has_blob(self, place: Place, digest: str) -> bool:
        """Whether the registry has it already."""
        try:
            with self._open("HEAD", place, f"blobs/{digest}", {}, write=True):
                return True
        except NotThere:
            return False

    def upload(self, place: Place, digest: str, source: Path) -> None:
        """Store a file unless it is there."""
        if self.has_blob(place, digest):
            return
        with self._open("POST", place, "blobs/uploads/", {}, body=b"", write=True) as answer:
            location = answer.headers["Location"]
        where = urllib.parse.urljoin(f"{place.url}/", location)
        where += f"{'&' if '?' in where else '?'}digest={urllib.parse.quote(digest)}"
        with source.open("rb") as file:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(source.stat().st_size)}
            with self._open("PUT", place, where, headers, body=file, write=True):
                pass

    def put_manifest(self, place: Place, manifest: Mapping[str, Any]) -> str:
        """Let the tag mean that manifest; its digest."""
        body = json.dumps(manifest, sort_keys=True).encode()
        headers = {"Content-Type": MANIFESTS[0]}
        with self._open("PUT", place, f"manifests/{place.reference}", headers, body=body, write=True):
            return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def forget(self, place: Place) -> bool:
        """Let the manifest with this digest be gone; its blobs leave when the registry collects its garbage. False: it
        is not there, or the registry removes nothing (for docker-registry: `storage.delete.enabled`)."""
        try:
            with self._open("DELETE", place, f"manifests/{place.reference}", {}):
                return True
        except (NotThere, RemovesNothing):
            return False

    # --- requests ---

    @contextlib.contextmanager
    def _open(
        self,
        method: str,
        place: Place,
        path: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None = None,
        write: bool = False,
    ) -> Iterator[http.client.HTTPResponse]:
        url = path if "://" in path else f"{place.url}/v2/{place.repository}/{path}"
        actions = "delete" if method == "DELETE" else "pull,push" if write else "pull"
        scope = f"{place.url} repository:{place.repository}:{actions}"
        for again in (False, True):
            request = urllib.request.Request(url, data=body, method=method, headers=dict(headers))
            host = place.url.partition("://")[2]
            if scope in self._tokens and urllib.parse.urlsplit(url).netloc == host:
                # Not repeated to where a redirect leads: stores of blobs refuse foreign credentials.
                request.add_unredirected_header("Authorization", self._tokens[scope])
            try:
                with self._request(request) as answer:
                    yield answer
                    return
            except urllib.error.HTTPError as error:
                with error:
                    # Whom it was redirected to is not the registry: it gets no credentials, whatever it asks for.
                    its_own = urllib.parse.urlsplit(error.url or url).netloc == host
                    if error.code == 401 and its_own and not again and not hasattr(body, "read"):
                        self._tokens[scope] = self._authorize(error.headers.get("WWW-Authenticate", ""), place, scope)
                        continue
                    raise _refused(method, place, error) from error
            except BROKEN as error:
                raise Unreachable(
                    f"the registry of {place} cannot be reached: {getattr(error, 'reason', error)}",
                    fix="Look at its address in the settings, and whether it answers there.",
                ) from error

    def _request(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        if self.guard is None:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return]
        if self._opener is None:
            self._opener = self.guard.opener(self.until)
        self.guard.check(request.full_url)
        return self._opener.open(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return]

    def _authorize(self, challenge: str, place: Place, scope: str) -> str:
        host = place.url.partition("://")[2]
        basic = f"Basic {self.auths[host]}" if host in self.auths else ""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and basic:
            return basic
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = asked.get("realm", "")
        if kind.lower() != "bearer" or not realm.startswith(("https://", f"{place.url}/")):
            raise ImageBuildError(f"the registry of {place} asks for credentials", fix=CREDENTIALS)
        if basic and not _belongs(urllib.parse.urlsplit(realm).hostname or "", host):
            raise ImageBuildError(
                f"the registry of {place} wants its credentials sent to {urllib.parse.urlsplit(realm).netloc}",
                fix="They are sent to its own host, and to hosts of the same domain.",
            )
        given = {"scope": scope.partition(" ")[2], **({"service": asked["service"]} if "service" in asked else {})}
        request = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(given)}")
        if basic:
            request.add_unredirected_header("Authorization", basic)
        try:
            with self._request(request) as answer:
                found = _json(answer.read(MAX_MANIFEST_BYTES))
        except BROKEN as error:
            raise ImageBuildError(f"the registry of {place} gives no token: {error}") from error
        return f"Bearer {found.get('token') or found.get('access_token')}"


def not_an_image(place: Place) -> ImageBuildError:
    """What the registry says of it is something else."""
    return ImageBuildError(f"{place} is no image that can be taken over", fix="Push it anew.")


class NotThere(ImageBuildError):
    """The registry does not have it."""


class RemovesNothing(ImageBuildError):
    """The registry keeps what it has."""


class Unreachable(ImageBuildError):
    """The registry does not answer."""


def _belongs(realm: str, registry: str) -> bool:
    """Whether the host that gives tokens is the registry's own, or one of its domain (auth.docker.io)."""
    own = urllib.parse.urlsplit(f"//{registry}").hostname or ""
    _, _, domain = own.partition(".")
    name, _, top = domain.partition(".")
    shared_by_strangers = not top or top.isdigit() or (len(top) == 2 and len(name) <= 3)  # co.uk, com.au
    return realm == own or (not shared_by_strangers and (realm == domain or realm.endswith(f".{domain}")))


def read_auths(path: str) -> dict[str, str]:
    """Credentials by host from a file as `docker login` writes it. Raises `ImageBuildError`; empty path: none."""
    if not path:
        return {}
    try:
        auths = json.loads(Path(path).read_text()).get("auths", {})
        found = {
            host.partition("://")[2] or host: str(entry["auth"]) for host, entry in auths.items() if "auth" in entry
        }
        for auth in found.values():
            base64.b64decode(auth, validate=True)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ImageBuildError(
            f"{path} is not a file of credentials: {error}", fix="Make it with `docker login`."
        ) from error
    return found


def _refused(method: str, place: Place, error: urllib.error.HTTPError) -> ImageBuildError:
    text = error.read(500).decode("utf-8", "replace").strip()
    if error.code == 404:
        return NotThere(f"{place} is not there", fix="Correct its name, or push it.")
    if error.code in (401, 403):
        return ImageBuildError(
            f"the registry refuses {place}: {error.code} {text}",
            fix=f"Correct its name. {CREDENTIALS}",
        )
    if error.code == 405:
        return RemovesNothing(f"{method} of {place} failed: {error.code} {text}")
    return ImageBuildError(f"{method} of {place} failed: {error.code} {text}")


def _mismatch(place: Place, wanted: str, found: str) -> DataLossError:
    return DataLossError(
        f"{place}: the registry sent {found} for {wanted}",
        fix="Push the image again; look at what is between you and it.",
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise ImageBuildError(f"a registry answered with something that is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ImageBuildError("a registry answered with something that is not an object")
    return found


def _for_machine(manifests: Any, machine: str) -> str | None:
    wanted = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    for one in manifests:
        platform = one.get("platform", {})
        if platform.get("os") == "linux" and platform.get("architecture") == wanted:
            return str(one["digest"])
    return None
