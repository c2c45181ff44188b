"""Inputs that are given to a container before their turn: in order, and never lost with what runs before them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from tests.sdk.runner.containers import Workshop, call, request_of, value
from tests.sdk.runner.test_classes import MARKS
from tests.support.eventually import eventually

from squall_gpu_agent.backend import Container, End, InputRequest, Lost, NotBegun

pytestmark = pytest.mark.slow

NOTES = """
    import os, pathlib, time
    def f(folder, number, what=""):
        folder = pathlib.Path(folder)
        (folder / str(number)).touch()
        if what == "die":
            os._exit(3)
        while what == "wait" and not (folder / "go").exists():
            time.sleep(0.005)
        return number
"""
"""Leaves a file when it begins."""


class Given:
    """Inputs given at once, one after the other."""

    def __init__(self, container: Container, *requests: InputRequest) -> None:
        self.begun: list[int] = []
        self.ends: list[asyncio.Task[End | NotBegun]] = [
            asyncio.create_task(container.run(request, on_begin=lambda place=place: self.begun.append(place)))  # noqa: TID251
            for place, request in enumerate(requests)
        ]

    async def end(self, place: int) -> End | NotBegun:
        async with asyncio.timeout(20):
            return await self.ends[place]


def noted(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


async def test_each_begins_when_the_one_before_has_ended(workshop: Workshop) -> None:
    container = await workshop.start("def f(x): return x")
    assert container.lines_up
    given = Given(container, *(request_of(number) for number in range(20)))
    for number in range(20):
        assert value(await given.end(number)) == number
    assert given.begun == list(range(20))
    assert not container.running


async def test_what_waits_behind_a_long_one_comes_back_and_has_not_run(workshop: Workshop, folder: Path) -> None:
    container = await workshop.start(NOTES)
    given = Given(container, request_of(str(folder), 0, "wait"), *(request_of(str(folder), n) for n in (1, 2)))
    assert await given.end(1) == await given.end(2) == NotBegun()
    assert not container.lines_up
    (folder / "go").touch()
    assert value(await given.end(0)) == 0
    assert given.begun == [0]
    assert noted(folder) == {"0", "go"}
    assert container.lines_up
    assert value(await call(container, str(folder), 3)) == 3


ENOUGH = """
    import pathlib, time
    import squall
    def f(folder, number):
        (pathlib.Path(folder) / str(number)).touch()
        squall.experimental.stop_fetching_inputs()
        return number
"""


async def test_nothing_in_line_begins_once_the_code_wants_no_more(workshop: Workshop, folder: Path) -> None:
    container = await workshop.start(ENOUGH)
    told: list[str] = []

    def enough() -> None:
        told.append("enough")
        container.recall()

    container.when_enough(enough)
    given = Given(container, *(request_of(str(folder), number) for number in range(3)))
    given.ends[0].add_done_callback(lambda _: told.append("ended"))
    assert value(await given.end(0)) == 0
    assert await given.end(1) == await given.end(2) == NotBegun()
    assert (noted(folder), told) == ({"0"}, ["enough", "ended"])
    assert (await container.stop()).code == 0


async def test_an_input_on_its_way_while_the_code_says_that_it_has_enough_runs(
    workshop: Workshop, folder: Path
) -> None:
    source = """
        import pathlib, threading, time
        import squall
        def stop(folder):
            while not (folder / "go").exists():
                time.sleep(0.005)
            squall.experimental.stop_fetching_inputs()
            (folder / "said").touch()
        def f(folder, number):
            if number == 0:
                threading.Thread(target=stop, args=(pathlib.Path(folder),)).start()
            return number
    """
    container = await workshop.start(source)
    told: list[str] = []

    def enough() -> None:
        told.append("enough")
        container.recall()

    container.when_enough(enough)
    assert value(await call(container, str(folder), 0)) == 0
    (folder / "go").touch()
    while not (folder / "said").exists():
        time.sleep(0.005)  # noqa: ASYNC251 - the agent must not have read it yet
    assert value(await call(container, str(folder), 1)) == 1
    await eventually(lambda: told == ["enough"])
    assert await call(container, str(folder), 2) == NotBegun(), "given to it when that was known"
    assert (await container.stop()).code == 0


async def test_one_that_has_enough_before_anybody_asks_says_so_then(workshop: Workshop) -> None:
    source = """
        import squall
        from marks import enter
        class C:
            @enter
            def start(self):
                squall.experimental.stop_fetching_inputs()
            def m(self): return 1
    """
    files = {"root/marks.py": MARKS, "root/app.py": source}
    container = await workshop.start(files, "C", is_class=True, methods=["m"], params={})
    told: list[str] = []
    container.when_enough(lambda: told.append("enough"))
    assert told == ["enough"]


async def test_one_that_is_cancelled_in_line_comes_back_and_the_others_go_on(workshop: Workshop, folder: Path) -> None:
    container = await workshop.start(NOTES)
    requests = [request_of(str(folder), 0, "wait"), request_of(str(folder), 1)]
    given = Given(container, *requests)
    await eventually(lambda: "0" in noted(folder))
    container.cancel(requests[1].call, requests[1].index)
    assert await given.end(1) == NotBegun()
    (folder / "go").touch()
    assert value(await given.end(0)) == 0
    assert noted(folder) == {"0", "go"}


async def test_when_the_container_dies_only_what_ran_is_lost(workshop: Workshop, folder: Path) -> None:
    container = await workshop.start(NOTES)
    given = Given(container, *(request_of(str(folder), n, what) for n, what in enumerate(["", "die", "", ""])))
    assert value(await given.end(0)) == 0
    lost = await given.end(1)
    assert isinstance(lost, Lost)
    assert await given.end(2) == await given.end(3) == NotBegun(exit=lost.exit)
    assert given.begun == [0, 1]
    assert noted(folder) == {"0", "1"}


async def test_nothing_is_given_ahead_where_inputs_run_at_the_same_time(workshop: Workshop) -> None:
    assert not (await workshop.start("def f(x): return x", max_inputs=2)).lines_up
    assert not (await workshop.start("async def f(x): return x")).lines_up


async def test_nothing_is_given_ahead_to_one_that_prints_past_python(workshop: Workshop) -> None:
    container = await workshop.start("import os\ndef f(x): os.write(1, b'hello\\n')")
    assert container.lines_up
    request = request_of(1)
    await container.run(request)
    assert [(log.text, log.call) for log in workshop.logs] == [("hello\n", request.call)]
    assert not container.lines_up
