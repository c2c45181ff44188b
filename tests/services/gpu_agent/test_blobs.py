"""Moving blobs: through a folder, and through a gateway that is slow to come, absent, or lies."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support.eventually import eventually

from squall.errors import DataLossError, ServiceError
from squall.http_api.protocol import blob_ref
from squall.spec import CodeRef, FunctionSpec, VolumeMount
from squall_contracts.functions import FunctionRecord
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.volumes.mounts import Mounts
from squall_gpu_agent.volumes.trees import Trees
from squall_service import blobs as blobs_module
from squall_service import failpoints
from squall_service.blobs import Blobs, BlobStore, FolderStore, GatewayStore
from squall_service.bundles import Bundles

CONTENT = b"content " * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
REF = blob_ref(DIGEST, len(CONTENT))


class FakeGateway:
    """The two routes for blobs, over real HTTP; fails as often as told."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.failures = 0
        self.seen: list[str] = []
        self.heads: list[str] = []
        self.workspaces: list[str | None] = []
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                blob = gateway.blobs.get(self.path)
                self._answer(200 if blob is not None else 404, blob or b"no such blob")

            def do_HEAD(self) -> None:
                gateway.heads.append(self.path)
                self.send_response(200)
                self.end_headers()

            def do_PUT(self) -> None:
                gateway.blobs[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(201, b"")

            def _answer(self, status: int, body: bytes) -> None:
                gateway.seen.append(self.headers["Authorization"])
                gateway.workspaces.append(self.headers["Squall-Workspace"])
                if gateway.failures:
                    gateway.failures -= 1
                    status, body = 503, b"not now"
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Requests are not written to the test's output."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    gateway = FakeGateway()
    thread = threading.Thread(target=gateway.server.serve_forever)
    thread.start()
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()
    thread.join()


@pytest.fixture(params=["folder", "gateway"])
def store(request: pytest.FixtureRequest, tmp_path: Path, gateway: FakeGateway) -> BlobStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "blobs")
    return GatewayStore(gateway.url, "secret")


async def test_what_was_put_comes_back_and_putting_it_again_changes_nothing(store: BlobStore, tmp_path: Path) -> None:
    blobs = Blobs(store)
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    for _ in range(2):
        assert await blobs.put_file(source) == (DIGEST, len(CONTENT))
        assert await blobs.put_bytes(CONTENT) == (DIGEST, len(CONTENT))
        await blobs.fetch(REF, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == CONTENT


async def test_blobs_of_a_workspace_lie_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "blobs"
    blobs, place = Blobs(FolderStore(folder)), folder / "workspaces" / "mine" / DIGEST[:2] / DIGEST
    await blobs.of("mine").put_bytes(CONTENT)
    assert [file for file in folder.rglob("*") if file.is_file()] == [place]
    await blobs.of("mine").fetch(REF, tmp_path / "target")
    with pytest.raises(DataLossError):
        await blobs.of("another").fetch(REF, tmp_path / "target")


async def test_what_records_of_before_name_is_where_all_blobs_were(tmp_path: Path) -> None:
    blobs = Blobs(FolderStore(tmp_path / "blobs"))
    await blobs.put_bytes(CONTENT)
    await blobs.of("mine").fetch(REF, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == CONTENT


async def test_a_gateway_is_told_whose_blob_is_meant(gateway: FakeGateway, tmp_path: Path) -> None:
    blobs = Blobs(GatewayStore(gateway.url, "secret"))
    await blobs.of("mine").put_bytes(CONTENT)
    await blobs.of("mine").fetch(REF, tmp_path / "target")
    assert gateway.workspaces == ["mine", "mine"]
    assert gateway.seen == ["Bearer secret"] * 2


async def test_a_bundle_is_fetched_for_the_workspace_of_its_function(gateway: FakeGateway, tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("root/app.py", "x = 1")
    packed = content.getvalue()
    code = CodeRef(hashlib.sha256(packed).hexdigest(), "app", "f", bundle_bytes=len(packed))
    gateway.blobs[f"/v1/blobs/{code.bundle_sha256}"] = packed
    bundles = Bundles(tmp_path / "bundles", Blobs(GatewayStore(gateway.url, "secret")))
    assert (await bundles.ensure(code, "mine") / "root/app.py").read_text() == "x = 1"
    assert gateway.workspaces == ["mine"]


async def test_a_blob_that_does_not_exist_is_lost_data(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(DataLossError):
        await Blobs(store).fetch(REF, tmp_path / "target")
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


async def test_a_blob_that_is_not_what_its_name_says_is_refused_and_not_left_behind(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.blobs[f"/v1/blobs/{DIGEST}"] = b"x" + CONTENT[1:]
    with pytest.raises(DataLossError, match="damaged"):
        await Blobs(GatewayStore(gateway.url, "secret")).fetch(REF, tmp_path / "target")
    assert not list(tmp_path.iterdir())


async def test_a_gateway_that_restarts_is_asked_again(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.failures = 1
    assert await Blobs(GatewayStore(gateway.url, "secret")).put_bytes(CONTENT) == (DIGEST, len(CONTENT))
    assert gateway.seen == ["Bearer secret"] * 2


async def test_a_gateway_that_is_not_there_is_an_error_that_may_pass() -> None:
    store = GatewayStore("http://127.0.0.1:1", "secret")
    with pytest.raises(ServiceError, match="PUT of blob"):
        await asyncio.to_thread(store.put, DIGEST, len(CONTENT), lambda: io.BytesIO(CONTENT))


async def test_a_disk_that_is_full_for_a_moment_costs_no_result(tmp_path: Path) -> None:
    blobs = Blobs(FolderStore(tmp_path / "blobs"))
    failpoints.arm("disk=full")
    try:
        async with asyncio.TaskGroup() as tasks:
            putting = tasks.create_task(blobs.put_bytes(CONTENT))
            await eventually((tmp_path / "blobs" / DIGEST[:2]).is_dir)
            assert not putting.done()
            failpoints.arm("")
    finally:
        failpoints.arm("")

    assert putting.result() == (DIGEST, len(CONTENT))
    await blobs.fetch(REF, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == CONTENT


async def test_what_cannot_be_stored_is_no_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "RETRY_DELAYS_S", (0.01,))
    failpoints.arm("disk=full")
    try:
        with pytest.raises(OSError, match="No space left"):
            await Blobs(FolderStore(tmp_path / "blobs")).put_bytes(CONTENT)
    finally:
        failpoints.arm("")

    assert not any(file.is_file() for file in tmp_path.rglob("*"))


async def test_blocks_of_volumes_are_the_workspaces_or_where_they_were_before(
    store: BlobStore, gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.blobs[f"/v1/volume-blocks/{DIGEST}"] = CONTENT
    folder = tmp_path / "blobs"
    for place in (folder / "volumes" / "main", folder):
        if isinstance(store, FolderStore):
            (place / DIGEST[:2]).mkdir(parents=True, exist_ok=True)
            (place / DIGEST[:2] / DIGEST).write_bytes(CONTENT)
        await Blobs(store).of_volumes("main", "token").fetch(REF, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == CONTENT
        shutil.rmtree(folder / "volumes", ignore_errors=True)
    if isinstance(store, FolderStore):
        shutil.rmtree(folder / DIGEST[:2])
        with pytest.raises(DataLossError):
            await Blobs(store).of_volumes("main", "token").fetch(REF, tmp_path / "target")


async def test_lists_of_mounted_versions_are_asked_for_as_long_as_they_are_mounted(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    listed = b'{"files": []}'
    sha256 = hashlib.sha256(listed).hexdigest()
    path = f"/v1/volume-blocks/{sha256}"
    head = {"version": 1, "manifest": f"{sha256}:{len(listed)}"}
    gateway.blobs.update({path: listed, "/v1/volumes/vo-1/head": json.dumps(head).encode()})
    spec = FunctionSpec(name="f", code=CodeRef("", "m", "f"), volumes=(VolumeMount(path="/data", volume="vo-1"),))
    function = FunctionRecord("fu-1", "ap-1", "app", "main", "main", 1, False, spec, 1.0)
    async with asyncio.TaskGroup() as group:
        trees = Trees(tmp_path / "volumes", Blobs(GatewayStore(gateway.url, "the agent's")), 0)
        mounts = Mounts(trees, gateway.url, Tasks(group))
        await mounts.of("co-1", function, "the container's")
        assert gateway.seen == ["Bearer the container's"] * 2, "never with the agent's own rights"
        await mounts.keep_lists()
        assert gateway.heads == [path]
        mounts.forget("co-1")
        await mounts.keep_lists()
    assert gateway.heads == [path]
