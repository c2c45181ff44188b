"""Commits to a volume, as containers send them."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
import pytest_asyncio
from tests.services.gateway.world import World

from squall_gateway import volume_blocks, volumes

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def commits(world: World) -> str:
    made = await world.http.post("/v1/objects/volumes", json={"name": "v", "environment": "main", "create": True})
    return f"/v1/volumes/{made.json()['id']}/commits"


def write(path: str, **more: Any) -> dict[str, Any]:
    return {
        "what": "write",
        "path": path,
        "file": {"path": path, "size": 0, "mtime": 1.0, "mode": 0o644, "blocks": [], **more},
    }


async def test_a_repeated_request_is_answered_with_its_own_version(world: World, commits: str) -> None:
    bodies = [{"changes": [write(name)], "request": name} for name in ("first", "second", "first")]
    versions = [(await world.http.post(commits, json=body)).json()["version"] for body in bodies]
    assert versions[1] == versions[0] + 1
    assert versions[2] == versions[0], "who expects that version next must not overwrite the second"


async def test_many_commits_at_once_are_all_made(world: World, commits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "TRIES", 2)
    async with asyncio.TaskGroup() as group:
        made = [
            group.create_task(world.http.post(commits, json={"changes": [write(f"at-once/{number}")]}))
            for number in range(30)
        ]
    versions = [each.result().json().get("version") for each in made]
    assert len(set(versions) - {None}) == len(versions)
    listed = await world.http.get(commits.replace("commits", "files"), params={"path": "at-once"})
    assert len(listed.json()["entries"]) == len(versions)


@pytest.mark.parametrize(
    "change",
    [
        '{"what": "write", "path": "a", "file": {"path": "a", "size": 0, "mtime": 1e300, "mode": 420, "blocks": []}}',
        '{"what": "write", "path": "a", "file": {"path": "a", "size": 0, "mtime": NaN, "mode": 420, "blocks": []}}',
        '{"what": "write", "path": "a", "file": {"path": "a", "size": 0, "mtime": 1, "mode": -1, "blocks": []}}',
        '{"what": "write", "path": "\\ud800", "file": {"path": "", "size": 0, "mtime": 1, "mode": 1, "blocks": []}}',
    ],
)
async def test_what_would_keep_machines_from_mounting_it_is_refused(world: World, commits: str, change: str) -> None:
    before = (await world.http.get(commits.replace("commits", "head"))).json()
    headers = {"content-type": "application/json"}
    answer = await world.http.post(commits, content=f'{{"changes": [{change}]}}', headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert (await world.http.get(commits.replace("commits", "head"))).json() == before


async def test_a_block_that_is_not_there_is_found_among_many(
    world: World, commits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_blocks, "ASKED_AT_ONCE", 3)
    there = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(7)]
    for number, sha256 in enumerate(there):
        assert (await world.http.put(f"/v1/volume-blocks/{sha256}", content=b"%d" % number)).is_success
    changes = [write(sha256, size=1, blocks=[sha256]) for sha256 in there]
    assert (await world.http.post(commits, json={"changes": changes})).is_success
    missing = hashlib.sha256(b"missing").hexdigest()
    refused = await world.http.post(commits, json={"changes": [*changes, write("m", size=1, blocks=[missing])]})
    assert refused.status_code == 400
    assert missing in refused.text


async def test_a_list_that_no_machine_would_take_is_refused(
    world: World, commits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MAX_LIST_BYTES", 100)
    refused = await world.http.post(commits, json={"changes": [write("long" * 30)]})
    assert refused.status_code == 400
    assert "Shorten paths" in refused.text
