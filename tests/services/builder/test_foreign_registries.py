"""Registries that users name: what the builder asks for them, what it refuses, and who sees whose credentials."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import ipaddress
import json
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from squall.errors import ImageBuildError
from squall_images.bases import Whose
from squall_images.distribution import Distribution
from squall_images.egress import EgressRules
from squall_images.layered import LayerFolder
from squall_images.outward import Forbidden, Guard
from squall_images.registry import Registry, _belongs, place_of

LOGIN = base64.b64encode(b"user:word").decode()


@dataclass
class Server:
    """An HTTP server that answers as it is told, and remembers who asked for what with which credentials."""

    answer: Callable[[str], tuple[int, dict[str, str]]] = lambda path: (404, {})
    body: Callable[[str], bytes] = lambda path: b""
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def a_server() -> Iterator[Server]:
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append((self.path, self.headers.get("Authorization", "")))
            code, headers = server.answer(self.path)
            self.send_response(code)
            body = server.body(self.path)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server.address = f"127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def registry() -> Iterator[Server]:
    with a_server() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    with a_server() as server:
        yield server


def guard(*trusted: str) -> Guard:
    return Guard(rules=EgressRules(), trusted=frozenset(trusted), proxies={})


def pulls(home: Path, registry: Server, **settings: object) -> Distribution:
    """A builder with the operator's credentials for its registry."""
    folder = LayerFolder(home)
    folder.open()
    url = f"http://{registry.address}"
    return Distribution(
        folder=folder,
        registry=Registry({registry.address: LOGIN}),
        default=url,
        guard=guard(url),
        **settings,  # type: ignore[arg-type]
    )


NOWHERE = [
    "127.0.0.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "0.0.0.0",
    "2130706433",
    "0x7f.1",
    "10.0.0.1",
    "192.168.0.1",
    "172.16.0.1",
    "100.64.0.1",
    "[fe80::1]",
    "[fd00::1]",
    "169.254.169.254",
    "168.63.129.16",
    "localhost",
]


@pytest.mark.parametrize("host", NOWHERE)
async def test_names_of_private_places_are_refused_and_not_connected_to(
    host: str, tmp_path: Path, registry: Server, other: Server
) -> None:
    port = other.address.rpartition(":")[2]
    tag = f"{host}:{port}/x:1"
    with pytest.raises(ImageBuildError, match=r"cannot reach|not the name of an image"):
        await pulls(tmp_path, registry).pull(tag, False, print, Whose())
    assert other.asked == registry.asked == []


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "https://user@example.org/", "file:///etc/passwd", "ftp://example.org/", "https:///x", "x"],
)
def test_only_https_goes_to_hosts_that_users_name(url: str) -> None:
    with pytest.raises(Forbidden):
        guard().check(url)


def test_what_the_operator_names_or_allows_is_reached() -> None:
    guard("http://127.0.0.1:5000").check("http://127.0.0.1:5000/v2/")
    with pytest.raises(Forbidden):
        guard("http://127.0.0.1:5000").check("http://127.0.0.1:5001/v2/")
    allowed = EgressRules(allowed=(ipaddress.ip_network("10.1.0.0/16"),))
    Guard(rules=allowed, proxies={}).check("https://10.1.2.3/v2/")


async def test_a_redirect_to_a_private_place_is_not_followed(tmp_path: Path, registry: Server, other: Server) -> None:
    for target in (f"http://{other.address}/", f"https://{other.address}/", "https://169.254.169.254/latest"):
        registry.answer = lambda path, to=target: (307, {"Location": to})  # type: ignore[misc]
        with pytest.raises(Forbidden):
            await pulls(tmp_path, registry).pull("image", False, print, Whose())
    assert other.asked == []


async def test_the_operators_credentials_are_not_lent_unless_he_says_so(tmp_path: Path, registry: Server) -> None:
    registry.answer = lambda path: (401, {"WWW-Authenticate": "Basic"})
    with pytest.raises(ImageBuildError, match="asks for credentials") as caught:
        await pulls(tmp_path, registry).pull("team/image", False, print, Whose())
    assert "SQUALL_BUILDER_REGISTRY_SHARED" in caught.value.hint
    assert {given for _, given in registry.asked} == {""}
    for shared in (f"{registry.address}/tea", f"{registry.address}/team/other"):
        with pytest.raises(ImageBuildError, match="asks for credentials"):
            await pulls(tmp_path, registry, shared=(shared,)).pull("team/image", False, print, Whose())
    assert {given for _, given in registry.asked} == {""}
    with pytest.raises(ImageBuildError):
        await pulls(tmp_path, registry, shared=(f"{registry.address}/team",)).pull("team/image", False, print, Whose())
    assert registry.asked[-1][1] == f"Basic {LOGIN}"


async def test_a_users_credentials_go_to_the_registry_that_he_names(tmp_path: Path, registry: Server) -> None:
    registry.answer = lambda path: (401, {"WWW-Authenticate": "Basic"})
    own = base64.b64encode(b"own:own").decode()
    with pytest.raises(ImageBuildError, match="refuses"):
        await pulls(tmp_path, registry).pull("image", False, print, Whose(login=own, scope="mine:"))
    assert [given for _, given in registry.asked] == ["", f"Basic {own}"]


async def test_credentials_go_to_no_other_host(tmp_path: Path, registry: Server, other: Server) -> None:
    whose = Whose(login=LOGIN, scope="mine:")
    challenge = {"WWW-Authenticate": f'Bearer realm="https://{other.address}/token",service="x"'}
    registry.answer = lambda path: (401, challenge)
    with pytest.raises(ImageBuildError):
        await pulls(tmp_path, registry).pull("image", False, print, whose)
    # Whom the registry redirects to asks for credentials in its name.
    share = pulls(tmp_path, registry)
    trusting = guard(f"http://{registry.address}", f"http://{other.address}")
    client = Registry({registry.address: LOGIN}, trusting)
    registry.answer = lambda path: (307, {"Location": f"http://{other.address}/blob"})
    other.answer = lambda path: (401, {"WWW-Authenticate": "Basic"})
    with pytest.raises(ImageBuildError, match="refuses"):
        client.manifest(place_of("image", share.default), "x86_64")
    assert [given for _, given in other.asked] == [""]
    assert {given for _, given in registry.asked} == {""}


async def test_the_platforms_own_images_are_no_bases_of_users(tmp_path: Path, registry: Server) -> None:
    with pytest.raises(ImageBuildError, match="keeps its own images"):
        await pulls(tmp_path, registry).pull("squall/images:im-0", False, print, Whose())
    assert registry.asked == []


@pytest.mark.parametrize(
    ("realm", "host", "belongs"),
    [
        ("auth.images.example", "registry-1.images.example", True),
        ("images.example", "images.example", True),
        ("gitlab.example.org", "registry.gitlab.example.org:5050", True),
        ("evil.example", "registry-1.images.example", False),
        ("evilimages.example", "registry-1.images.example", False),
        ("evil.co.uk", "shop.co.uk", False),
        ("10.0.0.2", "10.0.0.1:5000", False),
        ("org", "example.org", False),
    ],
)
def test_hosts_that_may_give_tokens_of_a_registry(realm: str, host: str, belongs: bool) -> None:
    assert _belongs(realm, host) is belongs


def an_image(content: bytes) -> dict[str, bytes]:
    """What a registry has of an image of one layer, by name."""
    config = b"{}"
    names = {f"sha256:{hashlib.sha256(part).hexdigest()}": part for part in (config, content)}
    digests = list(names)
    manifest = {"config": {"digest": digests[0]}, "layers": [{"digest": digests[1]}]}
    return {**names, "1": json.dumps(manifest).encode()}


def a_layer() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("file"))
    return packed.getvalue()


async def test_whoever_knows_the_digest_of_a_private_layer_does_not_have_it(tmp_path: Path, registry: Server) -> None:
    has = an_image(a_layer())
    registry.answer = lambda path: (200 if path.rpartition("/")[2] in has else 404, {})
    registry.body = lambda path: has.get(path.rpartition("/")[2], b"")
    share = pulls(tmp_path, registry)
    private = await share.pull("private:1", False, print, Whose(login=LOGIN, scope="mine#"))
    again = await share.pull("same:1", False, print, Whose(login=LOGIN, scope="mine#"))
    assert again.layers == private.layers
    for name in [name for name in has if has[name] == a_layer()]:
        del has[name]
    with pytest.raises(ImageBuildError, match="is not there"):
        await share.pull("of-others:1", False, print, Whose())


@pytest.mark.parametrize(
    "manifest",
    [
        {"config": [], "layers": []},
        {"config": {"digest": 7}, "layers": []},
        {"config": {}, "layers": ["x"]},
        {"manifests": ["x"]},
        {"manifests": [{"platform": "linux"}]},
        {"manifests": 3},
    ],
)
async def test_what_is_no_image_is_an_error_of_the_build(
    tmp_path: Path, registry: Server, manifest: dict[str, object]
) -> None:
    registry.answer = lambda path: (200, {})
    registry.body = lambda path: json.dumps(manifest).encode()
    with pytest.raises(ImageBuildError):
        await pulls(tmp_path, registry).pull("image:1", False, print, Whose())


@pytest.fixture
def a_dripping_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its answers have a byte every 50 ms, for more than half a minute: no wait for one of them is long."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-days",
        "2",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
    ]
    command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key)]
    subprocess.run([*command, "-out", str(certificate)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    done = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n")
                for _ in range(700):
                    if done.wait(0.05):
                        return
                    connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.slow
async def test_a_registry_that_drips_is_not_waited_for_without_end(
    tmp_path: Path, registry: Server, a_dripping_registry: str
) -> None:
    share = replace(pulls(tmp_path / "home", registry, pull_s=1.0), guard=guard(f"https://{a_dripping_registry}"))
    with pytest.raises(ImageBuildError, match=r"takes too long|timed out"):
        await share.pull(f"{a_dripping_registry}/x:1", False, print, Whose())
