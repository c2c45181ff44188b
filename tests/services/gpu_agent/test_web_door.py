"""Connections that web requests share one after the other: gateway's end, agent, and a stand-in for containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.eventually import eventually

from squall_gateway.web.connections import Connections
from squall_gateway.web.upstream import Upstream
from squall_gpu_agent.settings import AgentSettings
from squall_gpu_agent.splice import Splice
from squall_gpu_agent.tasks import Tasks
from squall_gpu_agent.web.door import Door
from squall_gpu_agent.web.lines import Line, Lines
from squall_gpu_agent.web.passages import FrameEnds
from squall_runner.frames import BadFrame, Web, encode

OPEN = encode(Web.OPEN, {"type": "http", "keep": True}) + encode(Web.END, {})
START, END, DONE = encode(Web.START, {"status": 200, "headers": []}), encode(Web.END, {}), encode(Web.DONE, {})


def answer(text: bytes) -> bytes:
    return START + encode(Web.DATA, {}, text) + END


def test_ends_of_frames_are_found_wherever_their_bytes_are_cut() -> None:
    stream = answer(b"x" * 300) + DONE
    whole = list(FrameEnds().within(stream))
    assert [kind for kind, _ in whole] == [Web.START, Web.DATA, Web.END, Web.DONE]
    assert whole[-1][1] == len(stream)
    for cut in range(1, len(stream)):
        ends = FrameEnds()
        first = list(ends.within(stream[:cut]))
        assert first + [(kind, at + cut) for kind, at in ends.within(stream[cut:])] == whole
    with pytest.raises(BadFrame):
        list(FrameEnds().within(b"\x46\xff\xff\xff\xff" + bytes(8)))


class Container:
    """Offers one line; what it answers to the next request is put into `says`."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.name, self.reader, self.writer = name, reader, writer
        self.heard: list[bytes] = []

    async def hear(self) -> None:
        """A whole request."""
        self.heard.append(await self.reader.readexactly(len(OPEN)))

    async def hear_and_say(self, *pieces: bytes) -> None:
        await self.hear()
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()


@dataclass
class Scene:
    """One agent's door, with a pool for each tenant, and a gateway's connections to it."""

    door: Door
    lines: Lines
    path: Path
    connections: Connections
    returned: list[str] = field(default_factory=list)
    made: list[Container] = field(default_factory=list)

    async def container(self, name: str) -> Container:
        key = self.lines._keys.get(name) or self.lines.expect(name)
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(f"SQUALL-WEB {name} {key}\n".encode())
        await eventually(lambda: bool(self.lines._idle.get(name)))
        self.made.append(Container(name, reader, writer))
        return self.made[-1]

    async def ask(self, pool: str) -> Upstream:
        ask = {"pool": pool, "key": self.door.key, "timeout_s": 60.0}
        return await self.connections.ask(self.door.address, ask, OPEN, raw=False, whole=True)

    async def exchange(self, container: Container, text: bytes) -> bytes:
        """One request that ends in order; what the gateway got."""
        saying = asyncio.ensure_future(container.hear_and_say(answer(text) + DONE))  # noqa: TID251
        upstream = await self.ask(container.name)
        await saying
        return await self.rest(upstream)

    async def ask_and(self, hear: Any, pool: str, then: Any) -> Upstream:
        """A request of which a container does something else than answer."""

        async def act() -> None:
            await hear()
            then()

        acting = asyncio.ensure_future(act())  # noqa: TID251
        upstream = await self.ask(pool)
        await acting
        return upstream

    async def rest(self, upstream: Upstream) -> bytes:
        """The body of an answer; its connection is given back."""
        got = b""
        while (frame := await upstream.receive()) is not None and frame.kind != Web.END:
            got += frame.payload
        self.connections.release(upstream)
        return got


@asynccontextmanager
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    lines, returned = Lines(), list[str]()

    def pool(name: str) -> Any:
        container = SimpleNamespace(id=name, container=SimpleNamespace(kill=lambda why: None))
        return SimpleNamespace(lend=lambda wanted: container, returned=lambda lent: returned.append(lent.id))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = Tasks(group)
        door = Door(AgentSettings(), SimpleNamespace(get=pool), lines, tasks)  # type: ignore[arg-type]
        splice = Splice("http://127.0.0.1:1", lines, tasks)
        loop = asyncio.get_running_loop()
        async with splice.listen(tmp_path / "api.sock"), door.listen(tmp_path):
            made = Scene(door, lines, tmp_path / "api.sock", Connections(loop.time), returned)
            try:
                yield made
            finally:
                made.connections.close()
                for container in made.made:
                    container.writer.close()
                    await asyncio.gather(container.writer.wait_closed(), return_exceptions=True)


def idle(found: Scene) -> int:
    return sum(len(each) for each in found.connections._idle.values())


async def test_requests_of_several_tenants_share_a_connection_and_nothing_else(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        one, other = await found.container("ta-one"), await found.container("ta-other")
        for round_ in range(3):
            assert await found.exchange(one, b"one %d" % round_) == b"one %d" % round_
            assert await found.exchange(other, b"other %d" % round_) == b"other %d" % round_
            assert idle(found) == 1
        assert (len(one.heard), len(other.heard)) == (3, 3)
        await eventually(lambda: found.returned == ["ta-one", "ta-other"] * 3)


@pytest.mark.parametrize(
    "surplus",
    [answer(b"of nobody"), b"x" * 40, DONE + answer(b"later"), encode(Web.DATA, {}, b"y")],
)
async def test_what_a_container_says_after_its_answer_reaches_nobody(tmp_path: Path, surplus: bytes) -> None:
    async with scene(tmp_path) as found:
        hostile, other = await found.container("ta-hostile"), await found.container("ta-other")
        saying = asyncio.ensure_future(hostile.hear_and_say(answer(b"mine") + surplus))  # noqa: TID251
        assert await found.rest(await found.ask("ta-hostile")) == b"mine"
        await saying
        assert await found.exchange(other, b"theirs") == b"theirs"
        hostile.writer.close()
        await eventually(lambda: sorted(found.returned) == ["ta-hostile", "ta-other"])


async def test_a_slot_is_taken_until_the_code_has_ended(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        container = await found.container("ta-one")
        saying = asyncio.ensure_future(container.hear_and_say(answer(b"all")))  # noqa: TID251
        assert await found.rest(await found.ask("ta-one")) == b"all"
        await saying
        assert (idle(found), found.returned) == (1, [])
        container.writer.write(DONE)
        await eventually(lambda: found.returned == ["ta-one"])


async def test_a_container_that_dies_before_its_answer_cuts_that_request_alone(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        container, other = await found.container("ta-one"), await found.container("ta-other")
        assert await found.exchange(other, b"before") == b"before"
        upstream = await found.ask_and(container.hear, "ta-one", container.writer.close)
        assert upstream.container == "ta-one", "the gateway must know that a container had it, or it would ask another"
        assert await upstream.receive() is None
        found.connections.release(upstream)
        assert idle(found) == 0
        assert await found.exchange(other, b"after") == b"after"


async def test_a_client_that_leaves_is_told_to_the_container_and_its_connection_is_not_used_again(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as found:
        container = await found.container("ta-one")
        saying = asyncio.ensure_future(container.hear_and_say(START))  # noqa: TID251
        upstream = await found.ask("ta-one")
        await saying
        found.connections.release(upstream)
        assert idle(found) == 0
        assert await container.reader.read() == b""
        assert found.returned == []
        container.writer.close()
        await eventually(lambda: found.returned == ["ta-one"])


async def test_an_agent_that_ends_takes_its_idle_connections_along(tmp_path: Path) -> None:
    async with scene(tmp_path) as found:
        container = await found.container("ta-one")
        await found.exchange(container, b"x")
        (connection,) = found.connections._idle[found.door.address]
        connection.data_received(b"unasked")
        assert idle(found) == 0


async def test_a_line_that_comes_as_its_taker_gives_up_is_kept_for_the_next_one() -> None:
    lines = Lines()
    key = lines.expect("ta-one")
    line = Line()
    line.connection_made(SimpleNamespace(is_closing=lambda: False))  # type: ignore[arg-type]
    taking = asyncio.ensure_future(lines.take("ta-one"))  # noqa: TID251
    await asyncio.sleep(0)

    assert lines.offer(f"ta-one {key}".encode(), line)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking

    assert lines.take_now("ta-one") is line
