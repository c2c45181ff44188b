"""A disk that is full in the middle of a volume's commit: it is said, nothing is lost, and there is no half version."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.services.gateway.world import World, error_of

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
SIZE_MIB = 12
BLOCK = 1 << 20
PAGE = 4096


@pytest.fixture
def small(world: World, tmp_path: Path) -> Path:
    """A small disk, for as long as there are gateways."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", disk], check=True)
    world.stack.callback(subprocess.run, ["umount", "--lazy", disk], check=False, capture_output=True)
    return disk


def fill(disk: Path, *, left: int) -> Path:
    """Somebody else's file, which leaves so many bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * PAGE) == PAGE:
                pass
        except OSError:
            pass
        file.truncate((file.tell() - left) // PAGE * PAGE)
    return filler


def a_write(path: str, *contents: bytes) -> dict[str, Any]:
    blocks = [hashlib.sha256(content).hexdigest() for content in contents]
    file = {"path": path, "size": sum(map(len, contents)), "mtime": 1.0, "mode": 0o644, "blocks": blocks}
    return {"what": "write", "path": path, "file": file}


async def put(http: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await http.put(f"/v1/volume-blocks/{hashlib.sha256(content).hexdigest()}", content=content)


async def test_a_commit_on_a_disk_that_becomes_full_is_refused_and_can_be_made_again(world: World, small: Path) -> None:
    _, http = await world.start_gateway(blobs=str(small / "blobs"), reserve_mib=1)
    volume = (await http.post("/v1/objects/volumes", json={"name": "full"})).json()["id"]
    path = f"/v1/volumes/{volume}"
    kept, first, second = b"kept", bytes(BLOCK), b"\1" * (3 * BLOCK)
    assert (await put(http, kept)).is_success
    assert (await http.post(f"{path}/commits", json={"changes": [a_write("kept", kept)]})).json()["version"] == 1
    before = (await http.get(f"{path}/head")).json()

    async def nothing_happened() -> None:
        assert (await http.get(f"{path}/head")).json() == before
        listed = (await http.get(f"{path}/files")).json()["entries"]
        assert [entry["path"] for entry in listed] == ["kept"]
        block = await http.get(f"/v1/volume-blocks/{hashlib.sha256(kept).hexdigest()}")
        assert block.content == kept
        assert not [found for found in small.rglob("tmp/*") if found.is_file()], "what was begun takes no room"

    # Full within the second of two blocks, after it was found to have room.
    filler = fill(small, left=3 * BLOCK + BLOCK // 2)
    assert (await put(http, first)).is_success
    refused = await put(http, second)
    assert (refused.status_code, error_of(refused)["code"]) == (507, "storage_full")
    assert "full" in error_of(refused)["message"]
    both = {"changes": [a_write("new", first), a_write("other", second)], "request": "r1"}
    assert (await http.post(f"{path}/commits", json=both)).status_code == 400, "a block of it is not there"
    await nothing_happened()

    # Full after all blocks: there is no room for the list of the new version.
    filler.unlink()
    assert (await put(http, second)).is_success
    filler = fill(small, left=0)
    refused = await http.post(f"{path}/commits", json=both)
    assert (refused.status_code, error_of(refused)["code"]) == (507, "storage_full")
    await nothing_happened()

    filler.unlink()
    made = [(await http.post(f"{path}/commits", json=both)).json()["version"] for _ in range(2)]
    assert made == [2, 2], "one version, also when it is asked for again"
    entries = (await http.get(f"{path}/files")).json()["entries"]
    assert {entry["path"]: entry["size"] for entry in entries} == {"kept": 4, "new": BLOCK, "other": 3 * BLOCK}
