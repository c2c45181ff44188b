"""Images: asked for once, followed to the end. The builder here is the test."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import pytest
from tests.services.gateway.world import SHARDS, World, a_function, sha256
from tests.support.eventually import eventually

from squall import errors
from squall.spec import ImageSpec, ImageStep, from_wire, to_wire
from squall_contracts import subjects
from squall_contracts.builds import BuildImage, ImageRecord, scoped
from squall_contracts.functions import FunctionRecord
from squall_contracts.logs import LogLines

pytestmark = pytest.mark.asyncio(loop_scope="module")


def an_image(name: str) -> ImageSpec:
    return ImageSpec(steps=(ImageStep("pip_install", {"packages": [name]}),))


class Builder:
    """Takes the requests of one image and answers them by hand."""

    def __init__(self, world: World, image: ImageSpec) -> None:
        self.world = world
        self.image = image

    async def asked(self) -> BuildImage:
        stream, subject = subjects.builds_stream("local"), subjects.build("local", self.image.id)
        stored = await eventually(lambda: self.world.bus.get_last(stream, subject))
        assert stored is not None
        await self.world.bus.delete_message(stream, stored.seq)
        return BuildImage.decode(stored.data)

    async def says(self, text: str, at: float) -> None:
        line = LogLines(self.image.id, "build", "", "b1", "", -1, [[at, "stdout", text]])
        shard = subjects.shard_of_name(self.image.id, SHARDS)
        await self.world.bus.publish(subjects.log("local", shard, self.image.id, "build", "-"), line.encode())

    async def answers(self, **fields: Any) -> None:
        record = ImageRecord(image=self.image.id, **{"updated_at": 0.0, **fields})
        await self.world.bus.kv("images").put(self.image.id, record.encode())


async def ensure(world: World, image: ImageSpec) -> list[dict[str, Any]]:
    answer = await world.http.post("/v1/images", json={"image": to_wire(image)})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines() if line]


async def test_an_image_is_asked_for_and_its_log_is_told_until_it_is_ready(world: World) -> None:
    image = an_image("numpy")
    builder = Builder(world, image)
    async with asyncio.TaskGroup() as tasks:
        lines = tasks.create_task(ensure(world, image))
        command = await builder.asked()
        await builder.answers(state="building", updated_at=command.requested_at)
        await builder.says("one\n", command.requested_at + 1)
        await builder.says("two\n", command.requested_at + 2)
        await builder.answers(state="ready")

    assert command.spec == image
    *told, last = lines.result()
    assert [line["text"] for line in told] == ["one\n", "two\n"]
    assert last == {"image": image.id}


async def test_an_image_that_is_there_is_answered_at_once(world: World) -> None:
    image = an_image("pandas")
    await Builder(world, image).answers(state="ready")

    assert await ensure(world, image) == [{"image": image.id}]


async def test_an_image_with_secrets_is_that_of_its_workspace_and_environment_whatever_the_client_says(
    world: World,
) -> None:
    step = ImageStep("run_commands", {"commands": ["a"], "secrets": ["token"], "scope": "other/main"})
    recipe = ImageSpec(steps=(step,))
    # Another workspace, and another environment, have built the same recipe.
    for image in (recipe, scoped(recipe, "other", "main"), scoped(recipe, "main", "prod")):
        await Builder(world, image).answers(state="ready")
    own = scoped(recipe, "main", "main")
    builder = Builder(world, own)
    async with asyncio.TaskGroup() as tasks:
        lines = tasks.create_task(ensure(world, recipe))
        command = await builder.asked()
        await builder.answers(state="ready")
    assert command.spec == own
    assert command.workspace == "main"
    assert lines.result() == [{"image": own.id}]

    published = await world.publish(a_function("one", image=recipe))
    found = await world.bus.kv("specs").get(published["functions"]["one"])
    assert found is not None
    assert FunctionRecord.decode(found.value).spec.image == own


async def test_two_who_ask_share_one_build(world: World) -> None:
    image = an_image("scipy")
    builder = Builder(world, image)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(ensure(world, image))
        stream = subjects.builds_stream("local")
        await eventually(lambda: world.bus.get_last(stream, subjects.build("local", image.id)))
        second = tasks.create_task(ensure(world, image))
        command = await builder.asked()
        await builder.says("once\n", command.requested_at + 1)
        await builder.answers(state="ready")

    # Who came while it was built has its log as well, who came after that has the image at once.
    assert first.result()[-1] == second.result()[-1] == {"image": image.id}
    assert {"text": "once\n"}.items() <= first.result()[0].items()


async def test_a_failed_build_is_told_and_tried_again_at_the_next_request(world: World) -> None:
    image = an_image("nonsense")
    builder = Builder(world, image)
    error = errors.to_wire(errors.ImageBuildError("no such package"))
    async with asyncio.TaskGroup() as tasks:
        failing = tasks.create_task(ensure(world, image))
        command = await builder.asked()
        await builder.says("old log\n", command.requested_at)
        await builder.answers(state="failed", error=error)
    async with asyncio.TaskGroup() as tasks:
        trying = tasks.create_task(ensure(world, image))
        command = await builder.asked()
        await builder.says("new log\n", command.requested_at + 1)
        await builder.answers(state="ready")

    assert failing.result()[-1] == {"error": error}
    assert [line.get("text") for line in trying.result()] == ["new log\n", None]


async def test_an_image_that_is_no_image_is_refused(world: World) -> None:
    answer = await world.http.post("/v1/images", json={"image": {"steps": "none"}})

    assert answer.status_code == 400


async def test_images_are_listed_looked_at_and_called_by_names(world: World) -> None:
    image = an_image("named")
    builder = Builder(world, image)
    path = f"/v1/image-names/{quote('team-base:1', safe='')}"
    await builder.answers(state="failed", workspace="main", spec=image, error={"message": "no"})
    refused = await world.http.put(path, json={"image": image.id})
    assert refused.status_code == 400
    assert "not ready" in refused.text
    await builder.answers(state="ready", workspace="main", spec=image, lock=("named==1",), layers=("0" * 32,))
    assert (await world.http.put(path, json={"image": image.id})).status_code == 200
    found = (await world.http.get(path)).json()
    assert (found["image"], found["packages"], found["names"]) == (image.id, ["named==1"], ["team-base:1"])
    assert from_wire(ImageSpec, found["spec"]) == image
    listed = (await world.http.get("/v1/images")).json()["images"]
    assert [row["names"] for row in listed if row["image"] == image.id] == [["team-base:1"]]
    assert (await world.http.get(f"/v1/images/{image.id}")).json() == found
    await builder.says("built it", 1.0)
    lines = (await world.http.get(f"/v1/images/{image.id}/logs")).text
    assert "built it" in lines
    other = (await world.http.get(path, params={"environment": "other"})).status_code
    assert other == 404, "a name belongs to an environment"


async def test_an_image_with_a_function_is_that_of_its_workspace(world: World) -> None:
    """Its id does not tell what its code is: another workspace could have built something else under it."""
    recipe = ImageSpec(steps=(ImageStep("run_function", {"function": "get", "source_key": "k", "_module": "theirs"}),))
    for image in (recipe, scoped(recipe, "other", "main")):
        await Builder(world, image).answers(state="ready", spec=image, workspace="other")
    own = scoped(recipe, "main", "main")
    builder = Builder(world, own)
    async with asyncio.TaskGroup() as tasks:
        lines = tasks.create_task(ensure(world, recipe))
        assert (await builder.asked()).spec == own
        await builder.answers(state="ready")
    assert lines.result() == [{"image": own.id}]
    assert own == scoped(recipe, "main", "prod"), "environments of a workspace share it"
    assert own.recipe_id == recipe.id


async def test_files_of_a_workspace_are_not_told_to_another_that_asks_for_an_equal_image(world: World) -> None:
    assert (await world.http.put(f"/v1/blobs/{sha256(b'my code')}", content=b"my code")).is_success
    step = ImageStep("run_commands", {"commands": ["get"], "_code": {"sha256": sha256(b"my code"), "bytes": 7}})
    image = ImageSpec(steps=(step,))
    for workspace in ("other", "main"):
        await Builder(world, image).answers(state="ready", spec=image, workspace=workspace)
        assert await ensure(world, image) == [{"image": image.id}]
        shown = (await world.http.get(f"/v1/images/{image.id}")).json()["spec"]
        assert from_wire(ImageSpec, shown).id == image.id
        assert ("_code" in shown["steps"][0]["arguments"]) is (workspace == "main")


async def test_images_of_other_workspaces_are_not_listed(world: World) -> None:
    image = an_image("foreign")
    await Builder(world, image).answers(state="ready", workspace="somebody-else", spec=image)
    listed = (await world.http.get("/v1/images")).json()["images"]
    assert image.id not in [row["image"] for row in listed]


@pytest.mark.parametrize(
    "path", ["/v1/images/nonsense", "/v1/images/im-1", "/v1/image-names/a%20b", "/v1/image-names/a"]
)
async def test_what_is_no_image_is_refused(world: World, path: str) -> None:
    assert (await world.http.get(path)).status_code == 400


@pytest.mark.parametrize("environment", ["a b", "*", "", ">"])
async def test_an_environment_that_cannot_be_is_refused(world: World, environment: str) -> None:
    for path in ("/v1/images", "/v1/image-names/base"):
        answer = await world.http.get(path, params={"environment": environment})
        assert answer.status_code == 400, answer.text
        assert "environment" in answer.json()["error"]["message"]
