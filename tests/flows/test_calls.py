"""Every way of calling, through the whole system: one process, and services as processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Platform, eventually

import squall
from squall import errors, session
from squall.http_api.routes import Route

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("client")]


def function(name: str) -> squall.Function:
    return squall.Function.from_name("surface", name)


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_remote_returns_the_value() -> None:
    assert function("square").remote(7) == 49
    assert function("add").remote(1) == 11
    assert function("add").remote(1, b=2) == 3
    assert function("square_async").remote(9) == 81


def test_async_callers_get_the_same() -> None:
    async def together() -> object:
        square = function("square")
        return await asyncio.gather(*(square.remote.aio(x) for x in range(20)))

    assert asyncio.run(together()) == [x * x for x in range(20)]


def test_map_yields_every_result_once_and_in_order() -> None:
    assert list(function("square").map(range(1500))) == [x * x for x in range(1500)]


def test_map_without_order_yields_the_same_results() -> None:
    assert Counter(function("square").map(range(300), order_outputs=False)) == Counter(x * x for x in range(300))


def test_spawn_map_accepts_every_input_and_all_of_them_run() -> None:
    call = function("square").experimental_spawn_map(range(1200))

    assert call is not None
    assert [call.get(timeout=60, index=index) for index in (0, 700, 1199)] == [0, 490_000, 1_437_601]
    eventually(lambda: ended_inputs(call) == 1200, within_s=60, what="some never ran")


def ended_inputs(call: squall.FunctionCall) -> int:
    return int(session.current().client.json("GET", Route.CALL.format(call=call.object_id))["finished"])


def test_map_of_nothing_is_empty() -> None:
    assert list(function("square").map([])) == []


def test_starmap_and_for_each() -> None:
    assert list(function("add").starmap([(1, 2), (3, 4), (5,)])) == [3, 7, 15]
    assert function("add").for_each([1, 2]) is None
    assert list(function("add").map([1, 2, 3], [10, 20])) == [11, 22]


def test_map_raises_at_the_position_of_the_failure_or_returns_exceptions() -> None:
    divide = function("divide")

    with pytest.raises(ZeroDivisionError):
        list(divide.starmap([(1, 1), (1, 0), (4, 2)]))
    first, second, third = divide.starmap([(1, 1), (1, 0), (4, 2)], return_exceptions=True)

    assert (first, third) == (1.0, 2.0)
    assert isinstance(second, ZeroDivisionError)


def test_map_takes_inputs_from_an_endless_generator_as_results_are_read() -> None:
    def forever() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    results: Any = iter(function("square").map(forever()))

    assert [next(results) for _ in range(30)] == [x * x for x in range(30)]
    results.close()


def test_spawned_calls_are_found_again_by_id() -> None:
    calls = [function("square").spawn(x) for x in range(10)]

    assert squall.FunctionCall.gather(*calls) == [x * x for x in range(10)]
    assert squall.FunctionCall.from_id(calls[3].object_id).get() == 9


def test_get_with_a_timeout_raises_the_builtin_error(effects: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = function("hold").spawn(str(effects), str(gate), "x")

    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    with pytest.raises(TimeoutError):
        call.get(timeout=0.05)
    gate.touch()

    assert call.get(timeout=30) == "x"
    assert lines(effects) == ["started x", "finished x"]


def test_generators_stream_their_items() -> None:
    assert list(function("count_to").remote_gen(1000)) == list(range(1000))
    assert list(function("count_to_async").remote_gen(5)) == list(range(5))


def test_a_generator_that_fails_yields_what_came_before() -> None:
    items = function("count_then_fail").remote_gen(3)

    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(LookupError, match="no item 3"):
        next(items)


def test_a_user_exception_keeps_its_class_and_the_remote_traceback() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        function("divide").remote(1, 0)

    assert "surface.py" in str(raised.value.__cause__)
    assert "return a / b" in str(raised.value.__cause__)


def test_a_class_is_entered_once_per_container_and_each_parameter_set_has_its_own(effects: Path) -> None:
    counter = squall.Cls.from_name("surface", "Counter")
    ten, hundred = counter(start=10, path=str(effects)), counter(start=100)

    assert [ten.more.remote(), ten.more.remote(by=5)] == [11, 16]
    assert hundred.more.remote() == 101
    assert list(ten.down.remote_gen()) == list(range(10, 0, -1))
    assert [line.split()[0] for line in lines(effects)] == ["enter"]


def test_functions_call_functions() -> None:
    assert function("outer").remote(5) == sum(x * x for x in range(5)) + 3
    assert function("descend").remote(4) == 4


def test_one_container_runs_several_inputs_at_once(effects: Path) -> None:
    pids = list(function("meet").map([str(effects)] * 6, kwargs={"wanted": 6}))

    assert len(lines(effects)) == 6
    assert len(set(pids)) < 6, "no two of them shared a container"


def test_a_missing_function_is_named() -> None:
    with pytest.raises(errors.NotFoundError, match="nothing"):
        function("nothing").remote()
    with pytest.raises(errors.NotFoundError, match="nowhere"):
        squall.Function.from_name("nowhere", "f").remote()


def test_a_container_that_dies_takes_no_call_with_it(client: Platform, effects: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = function("hold").spawn(str(effects), str(gate), "y")
    eventually(lambda: lines(effects), within_s=20, what="it never started")
    where = function("where").remote()

    os.kill(where["pid"], signal.SIGKILL)
    gate.touch()

    assert call.get(timeout=30) == "y"
    assert function("where").remote()["pid"] != where["pid"]
