"""spawn_map: every input goes up once, in chunks, and nothing is waited for but the acknowledgement."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import errors, exception, session
from squall.http_api.protocol import Header
from squall.spec import CHUNK_INPUTS

app = squall.App("bulk")


@app.function()
def add(x: int, y: int = 0) -> int:
    return x + y


@app.function()
def size(data: bytes) -> int:
    return len(data)


@app.function()
def count(n: int) -> Iterator[int]:
    yield from range(n)


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway. No thread of a bulk spawn is left when the test ends."""
    gateway.serve(app)
    with app.run():
        yield gateway
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("squall-spawn")]


def test_every_input_goes_up_once_and_nothing_is_returned(running: FakeGateway) -> None:
    assert add.spawn_map(range(2500), range(2500), kwargs={}) is None

    [results] = running.calls.values()
    assert sorted(results) == list(range(2500))
    assert sorted(map(len, running.chunks)) == [500, CHUNK_INPUTS, CHUNK_INPUTS]
    assert {headers[Header.KIND] for headers in running.headers_of_inputs()} == {"spawn"}


def test_the_experimental_form_returns_the_call_with_all_inputs(running: FakeGateway) -> None:
    call = add.experimental_spawn_map([1, 2, 3], [10, 20], kwargs={})

    assert isinstance(call, squall.FunctionCall)
    assert [call.get(index=index) for index in range(2)] == [11, 22]


def test_no_inputs_make_no_request(running: FakeGateway) -> None:
    add.spawn_map([])
    assert running.chunks == []


def test_large_inputs_go_through_the_blob_store(running: FakeGateway) -> None:
    call = size.experimental_spawn_map([b"x" * 100_000, b"y", b"z" * 200_000])

    assert call is not None
    assert [call.get(index=index) for index in range(3)] == [100_000, 1, 200_000]
    assert len(running.blobs) >= 2


def test_a_full_queue_is_waited_for_and_a_broken_answer_sent_again(running: FakeGateway) -> None:
    running.input_errors = [errors.ResourceExhaustedError("full"), errors.ServiceError("away")]
    running.break_next.append("inputs")

    add.spawn_map(range(10))

    [results] = running.calls.values()
    assert sorted(results) == list(range(10))


def test_what_the_server_refuses_is_raised_and_stops_the_rest(running: FakeGateway) -> None:
    running.input_errors = [errors.StorageFullError("the disk is full", fix="x"), errors.InvalidError("no")] * 9
    for error in running.input_errors:
        error.retryable = False
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1_000_000):
            taken = number
            yield number

    with pytest.raises(exception.Error, match=r"the disk is full|no"):
        add.spawn_map(items())

    assert taken < 20 * CHUNK_INPUTS


def test_an_error_of_the_callers_own_iterable_is_raised(running: FakeGateway) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        add.spawn_map(items())


def test_generators_have_no_spawn_map(running: FakeGateway) -> None:
    with pytest.raises(exception.InvalidError, match="is a generator"):
        count.spawn_map([1])


def test_in_a_loop_the_asynchronous_form_takes_asynchronous_iterables(running: FakeGateway) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    async def program() -> None:
        with pytest.raises(exception.InvalidError, match=r"spawn_map\(\) cannot be used"):
            add.spawn_map([1])
        assert await add.spawn_map.aio(numbers(), range(1000)) is None

    asyncio.run(program())
    [results] = running.calls.values()
    assert sorted(results) == list(range(100))
