"""A blob store on a real S3 server: places of workspaces in it; and it goes away while a volume is committed, which
is told in clear words and loses nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.services.gateway.test_blob_places import check_places
from tests.services.gateway.world import World, a_world, error_of
from tests.support.eventually import eventually
from tests.support.s3_server import KEYS, S3Server

pytestmark = pytest.mark.slow


def write(sha256: str, size: int) -> dict[str, Any]:
    file = {"path": "a", "size": size, "mtime": 1.0, "mode": 0o644, "blocks": [sha256]}
    return {"changes": [{"what": "write", "path": "a", "file": file}]}


async def is_there(world: World, sha256: str) -> bool:
    return (await world.http.get(f"/v1/volume-blocks/{sha256}")).is_success


async def content_of(world: World, volume: str) -> bytes:
    file = (await world.http.get(f"/v1/volumes/{volume}/file", params={"path": "a"})).json()
    return b"".join([(await world.http.get(f"/v1/volume-blocks/{block}")).content for block in file["blocks"]])


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.make("blobs")
        yield server


def options_of(s3: S3Server) -> dict[str, str]:
    return {"endpoint": s3.url, "region": "us-east-1"} | {name.lower(): value for name, value in KEYS.items()}


async def test_places_in_a_bucket(s3: S3Server) -> None:
    await check_places("s3://blobs/places", options_of(s3))


async def test_a_commit_while_the_store_is_away_is_refused_in_words_and_succeeds_later(
    tmp_path: Path, s3: S3Server
) -> None:
    first, second = b"1" * 100_000, b"2" * 100_000
    names = [hashlib.sha256(each).hexdigest() for each in (first, second)]
    async with a_world(tmp_path, blobs="s3://blobs/here", blob_options=options_of(s3)) as world:
        body = {"name": "v", "environment": "main", "create": True}
        volume = (await world.http.post("/v1/objects/volumes", json=body)).json()["id"]
        commits = f"/v1/volumes/{volume}/commits"
        assert (await world.http.put(f"/v1/volume-blocks/{names[0]}", content=first)).is_success
        assert (await world.http.post(commits, json=write(names[0], len(first)))).json()["version"] == 1
        assert (await world.http.put(f"/v1/volume-blocks/{names[1]}", content=second)).is_success

        await asyncio.to_thread(s3.stop)
        for refused in (
            await world.http.put(f"/v1/volume-blocks/{'0' * 64}", content=b"x" * 100_000, timeout=60),
            await world.http.post(commits, json=write(names[1], len(second)), timeout=60),
        ):
            assert (refused.status_code, error_of(refused)["code"]) == (503, "service"), refused.text
            assert "the blob store" in error_of(refused)["message"]
            assert KEYS["AWS_SECRET_ACCESS_KEY"] not in refused.text

        await asyncio.to_thread(s3.start)
        # It answers before it has found all objects again.
        for sha256 in names:
            await eventually(lambda sha256=sha256: is_there(world, sha256), within_s=60)
        head = (await world.http.get(f"/v1/volumes/{volume}/head")).json()
        assert head["version"] == 1
        assert await content_of(world, volume) == first
        assert (await world.http.post(commits, json=write(names[1], len(second)))).json()["version"] == 2
        assert await content_of(world, volume) == second
