"""The life of a call at the agent, on a real bus with a backend whose timing tests control."""

from __future__ import annotations

from tests.services.gpu_agent.fake_backend import FakeBackend, FakeContainer, output
from tests.services.gpu_agent.scene import Scene

from squall_gpu_agent.backend import End, InputRequest


async def echo(container: FakeContainer, request: InputRequest) -> End:
    return output(b"echo " + (request.payload or b""))


async def test_a_call_is_recorded_then_answered_then_removed_from_the_queue(scene: Scene) -> None:
    async with scene.agent(FakeBackend({"f": echo})):
        pool, function = await scene.ready()
        request = await scene.call(pool, function, b"hello")
        result = await scene.result(request)
        assert (result.outcome, result.payload, result.node) == ("succeeded", b"echo hello", "node-a")
        assert (await scene.reply(request)).encode() == result.encode()
        await scene.emptied(pool)
