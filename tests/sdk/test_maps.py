"""Maps: order, failures, back-pressure, broken streams, and what is left behind (nothing)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import exception, mapping, session
from squall.output import Output, use

app = squall.App("maps")


@app.function()
def double(x: int, offset: int = 0) -> int:
    return 2 * x + offset


@app.function()
def odd(x: int) -> int:
    if x % 2 == 0:
        raise ValueError(f"{x} is even")
    return x


@app.function()
def add(x: int, y: int = 10, *, z: int = 0) -> int:
    return x + y + z


@app.function()
def count(n: int) -> Iterator[int]:
    yield from range(n)


@app.function()
def size(data: bytes) -> int:
    return len(data)


@app.function()
def echo(data: bytes) -> bytes:
    return data


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway. No thread of a map is left when the test ends."""
    gateway.serve(app)
    with app.run():
        yield gateway
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("squall-map")]


# --- results ---------------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_inputs(running: FakeGateway) -> None:
    assert list(double.map(range(2500))) == [2 * x for x in range(2500)]


def test_results_come_as_they_finish_when_order_does_not_matter(running: FakeGateway) -> None:
    assert sorted(double.map(range(100), order_outputs=False)) == [2 * x for x in range(100)]


def test_there_is_one_iterable_for_each_parameter_and_the_shortest_ends_the_map(running: FakeGateway) -> None:
    assert list(add.map([1, 2, 3], [10, 20], kwargs={"z": 100})) == [111, 122]


def test_starmap_takes_argument_sequences(running: FakeGateway) -> None:
    assert list(add.starmap([(1,), [2, 3], (4, 5)])) == [11, 5, 9]


def test_for_each_returns_nothing_and_waits_for_all(running: FakeGateway) -> None:
    done: list[int] = []
    running.functions["double"] = done.append
    assert double.for_each(range(50)) is None  # type: ignore[func-returns-value]
    assert sorted(done) == list(range(50))


def test_a_map_of_nothing_is_empty_and_asks_nobody(running: FakeGateway) -> None:
    before = len(running.requests)
    assert list(double.map([])) == []
    assert len(running.requests) == before


def test_none_is_an_input_and_a_result_like_any_other(running: FakeGateway) -> None:
    running.functions["double"] = lambda x: x
    assert list(double.map([None, 1, None])) == [None, 1, None]


def test_large_inputs_and_results_go_through_the_blob_store(running: FakeGateway) -> None:
    data = [bytes([n]) * 100_000 for n in range(20)]
    assert list(echo.map(data)) == data


def test_inputs_that_are_too_large_for_memory_go_through_files(running: FakeGateway) -> None:
    data = bytes(5_000_000)
    assert list(size.map(data for _ in range(25))) == [5_000_000] * 25


# --- failures --------------------------------------------------------------------------------------------------------


def test_the_first_failure_is_raised_at_its_position_and_the_rest_is_cancelled(running: FakeGateway) -> None:
    results = iter(odd.map([1, 3, 4, *[5] * 5000]))
    assert [next(results), next(results)] == [1, 3]
    with pytest.raises(ValueError, match="4 is even"):
        next(results)
    assert len(running.cancelled) == 1


def test_failures_may_be_values(running: FakeGateway) -> None:
    results = list(odd.map([1, 2, 3], return_exceptions=True))
    assert (results[0], results[2]) == (1, 3)
    assert isinstance(results[1], ValueError)


def test_exceptions_are_never_wrapped(running: FakeGateway) -> None:
    assert isinstance(next(iter(odd.map([2], return_exceptions=True, wrap_returned_exceptions=False))), ValueError)
    with pytest.warns(DeprecationWarning, match="wrap_returned_exceptions"):
        results = list(odd.map([2], return_exceptions=True, wrap_returned_exceptions=True))
    assert isinstance(results[0], ValueError)


def test_for_each_raises_the_first_failure_unless_failures_are_ignored(running: FakeGateway) -> None:
    with pytest.raises(ValueError, match="is even"):
        odd.for_each([1, 2, 3])
    odd.for_each([1, 2, 3], ignore_exceptions=True)


def test_an_input_that_cannot_be_pickled_ends_the_map_and_is_named(running: FakeGateway) -> None:
    with pytest.raises(exception.SerializationError, match="argument x of double"):
        list(double.map([1, threading.Lock()]))


def test_an_exception_of_the_users_iterable_comes_out_of_the_map(running: FakeGateway) -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(double.map(inputs()))
    assert len(running.cancelled) == 1


def test_a_generator_cannot_be_mapped(running: FakeGateway) -> None:
    with pytest.raises(exception.InvalidError, match="generator"):
        list(count.map([1]))


def test_a_limit_of_the_server_delays_a_map_but_does_not_end_it(running: FakeGateway) -> None:
    running.input_errors = [exception.ResourceExhaustedError("too many inputs are queued")]
    assert list(double.map(range(10))) == [2 * x for x in range(10)]


def test_other_refusals_end_a_map(running: FakeGateway) -> None:
    running.input_errors = [exception.StorageFullError("the disk is full")]
    with pytest.raises(exception.StorageFullError):
        list(double.map(range(10)))


# --- flow ------------------------------------------------------------------------------------------------------------


def test_at_most_a_thousand_inputs_are_under_way(running: FakeGateway) -> None:
    taken = given = most = 0

    def inputs() -> Iterator[int]:
        nonlocal taken, most
        for number in range(4000):
            taken += 1
            most = max(most, taken - given)
            yield number

    for _ in double.map(inputs()):
        given += 1
    assert (taken, given) == (4000, 4000)
    assert most <= mapping.MAX_OUTSTANDING + 1


def test_the_users_iterable_is_consumed_on_the_users_thread(running: FakeGateway) -> None:
    threads = set()

    def inputs() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.get_ident())
            yield number

    list(double.map(inputs()))
    assert threads == {threading.get_ident()}


def test_results_come_while_the_users_iterable_still_goes_on(running: FakeGateway) -> None:
    results: list[int] = []
    pulled_before_first: list[int] = []

    def inputs() -> Iterator[int]:
        for number in range(100_000):
            if not results:
                pulled_before_first.append(number)
            yield number

    for result in double.map(inputs()):
        results.append(result)
        if len(results) == 3:
            break
    assert len(pulled_before_first) <= mapping.MAX_OUTSTANDING


def test_the_first_chunk_is_small_and_later_ones_are_large(running: FakeGateway) -> None:
    list(double.map(range(3000)))
    sizes = [len(inputs) for inputs in running.chunks]
    assert sizes[0] <= mapping.FIRST_CHUNK_INPUTS
    assert max(sizes) > mapping.FIRST_CHUNK_INPUTS
    assert sum(sizes) == 3000


def test_a_stream_of_results_that_breaks_is_resumed_where_it_was(running: FakeGateway) -> None:
    running.results_per_stream = 7
    assert list(double.map(range(50))) == [2 * x for x in range(50)]
    cursors = [path.rpartition("=")[2] for path in running.paths("GET") if "/results?" in path]
    assert cursors[:3] == ["0", "7", "14"]


def test_results_that_come_twice_are_given_once(running: FakeGateway) -> None:
    running.results_per_stream, running.repeats_results = 20, True
    assert sorted(double.map(range(30), order_outputs=False)) == [2 * x for x in range(30)]


def test_a_chunk_whose_answer_is_lost_is_sent_again(running: FakeGateway) -> None:
    running.break_next.append("inputs")
    assert list(double.map(range(20))) == [2 * x for x in range(20)]


def test_a_map_that_is_left_early_is_cancelled_and_leaves_no_thread(running: FakeGateway) -> None:
    for result in double.map(range(100_000)):
        if result > 10:
            break
    assert len(running.cancelled) == 1


def test_results_that_nobody_looks_at_are_warned_about(running: FakeGateway) -> None:
    results = double.map([1, 2, 3])
    with pytest.warns(RuntimeWarning, match="dropped"):
        del results


class Progress(Output):
    """Keeps what a map reported."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, int, int, bool]] = []

    def map_progress(self, call: str, function: str, done: int, submitted: int, finished: bool) -> None:
        self.reports.append((function, done, submitted, finished))


def test_a_map_reports_its_progress(running: FakeGateway) -> None:
    progress = Progress()
    with use(progress):
        list(double.map(range(100)))
    assert progress.reports[-1] == ("double", 100, 100, True)
    done = [report[1] for report in progress.reports]
    assert done == sorted(done)


def test_a_map_is_one_trace(running: FakeGateway, connected: session.Session) -> None:
    list(double.map(range(100)))
    connected.recorder.flush()
    rows = [batch for batch in running.spans if batch["rows"][0][0] == "call"]
    assert len(rows) == 1
    traceparents = {headers["traceparent"] for headers in running.headers_of_inputs()}
    assert traceparents == {f"00-{rows[0]['trace_id']}-{rows[0]['parent_id']}-01"}
