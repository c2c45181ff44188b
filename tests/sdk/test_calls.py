"""Calls: remote, remote_gen, spawn, and what comes back. A gateway in this process runs the functions."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Iterator

import pytest
from tests.sdk.fake_gateway import FakeGateway, serving

import squall
from squall import exception, session
from squall.config import ServerAddress
from squall.http_api.protocol import Header, ServerInfo
from squall.http_api.routes import Route
from squall.invoke import RemoteTraceback, require_webhooks
from squall.output import Output, use

app = squall.App("calls")


class Refused(Exception):
    """An exception of the user's own."""


@app.function()
def double(x: int) -> int:
    return 2 * x


@app.function()
def length(data: bytes, *, times: int = 1) -> bytes:
    return data * times


@app.function()
def refuse(why: str) -> None:
    raise Refused(why)


@app.function()
def chain() -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise Refused("outer") from error


@app.function()
def count(n: int) -> Iterator[int]:
    yield from range(n)


@app.function()
def pair(first: object, second: object = None) -> None:
    """Takes anything."""


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway."""
    gateway.serve(app)
    with app.run():
        yield gateway


# --- results and exceptions ------------------------------------------------------------------------------------------


def test_a_call_returns_what_the_function_returns(running: FakeGateway) -> None:
    assert double.remote(21) == 42


def test_a_call_says_what_it_calls_and_how(running: FakeGateway) -> None:
    double.remote(1)
    headers = running.headers_of("POST /v1/calls")[-1]
    assert headers[Header.FUNCTION] == "ap-1/double"
    assert (headers[Header.KIND], headers[Header.ENCODING]) == ("remote", "pickle")
    start, end = map(int, headers[Header.SENT].split(":"))
    assert 0 < start <= end


def test_an_exception_of_the_function_is_raised_as_its_own_class(running: FakeGateway) -> None:
    with pytest.raises(Refused, match="not today") as caught:
        refuse.remote("not today")
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in refuse" in str(caught.value.__cause__)


def test_causes_that_came_with_an_exception_stay_in_its_chain(running: FakeGateway) -> None:
    inner = KeyError("inner")
    error = Refused("outer")
    error.__cause__ = inner
    told = {"kind": "user", "type": "Refused", "module": __name__, "message": "outer", "traceback": "the text"}

    from squall.http_api.protocol import FrameKind, frames
    from squall.invoke import failure_of
    from squall_runner.payload import dump_exception

    meta = {"call": "fc", "index": 0, "outcome": "failed", "error": told}
    raised = failure_of(session.current().client, frames.Frame(FrameKind.RESULT, meta, dump_exception(error)))
    assert isinstance(raised, Refused)
    assert isinstance(raised.__cause__, KeyError)
    assert "the text" in str(raised.__cause__.__cause__)


def test_an_exception_whose_class_is_not_here_becomes_an_execution_error_with_its_text(running: FakeGateway) -> None:
    told = {"kind": "user", "type": "Odd", "module": "far.away", "message": "broken", "traceback": "Traceback: far"}
    running.outcomes["double"] = {"outcome": "failed", "error": told}
    with pytest.raises(exception.ExecutionError, match=r"far\.away\.Odd: broken") as caught:
        double.remote(1)
    assert "Traceback: far" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("outcome", "error", "expected"),
    [
        (
            "timed_out",
            {"kind": "function_timeout", "message": "ran 3 s", "data": {"timeout_s": 3}},
            "FunctionTimeoutError",
        ),
        ("cancelled", None, "CallCancelledError"),
        ("expired", {"kind": "expired", "message": "waited a day"}, "CallExpiredError"),
        ("failed", {"kind": "infra", "message": "lost 8 times"}, "InternalFailure"),
        ("failed", {"kind": "a code of the future", "message": "x"}, "ServiceError"),
    ],
)
def test_what_the_platform_did_to_a_call_is_an_error_of_the_catalogue(
    running: FakeGateway, outcome: str, error: object, expected: str
) -> None:
    running.outcomes["double"] = {"outcome": outcome, "error": error}
    with pytest.raises(getattr(exception, expected)) as caught:
        double.remote(1)
    assert caught.value.data["call"].startswith("fc-")


# --- payloads --------------------------------------------------------------------------------------------------------


def test_large_arguments_and_results_go_through_the_blob_store(running: FakeGateway) -> None:
    data = bytes(range(256)) * 1000
    assert length.remote(data, times=2) == data * 2
    assert running.headers_of("POST /v1/calls")[-1][Header.BLOB].endswith(
        f":{len(pickle.dumps(((data,), {'times': 2}), 4))}"
    )
    assert any(path.startswith("/v1/blobs/") for path in running.paths("GET"))


@pytest.mark.parametrize(("size", "uploads"), [(300_000, 0), (5_000_000, 1)])
def test_a_large_argument_goes_up_with_its_call_and_a_very_large_one_before_it(
    running: FakeGateway, size: int, uploads: int
) -> None:
    data, before = bytes(size), len(running.paths("PUT"))

    assert length.remote(data) == data
    assert len(running.paths("PUT")) - before == uploads


@pytest.mark.parametrize("damaged", [False, True])
def test_a_large_result_in_the_answer_itself_is_taken_if_it_has_the_hash(running: FakeGateway, damaged: bool) -> None:
    data = bytes(range(256)) * 1000
    running.embed = lambda value: value[:-1] + b"?" if damaged else value

    assert length.remote(data, times=2) == data * 2
    assert any(path.startswith("/v1/blobs/") for path in running.paths("GET")) == damaged


def test_values_of_many_megabytes_go_through_files_and_come_back_whole(running: FakeGateway) -> None:
    data = bytes(9_000_000)
    assert length.remote(data) == data


def test_an_argument_that_cannot_be_pickled_is_named(running: FakeGateway) -> None:
    with pytest.raises(exception.SerializationError, match="argument second of pair"):
        pair.remote(1, threading.Lock())
    with pytest.raises(exception.SerializationError, match="argument first of pair"):
        pair.remote(first=queue.SimpleQueue())
    assert running.paths("POST").count(f"{Route.CALLS}?wait=55") == 0


# --- handles ---------------------------------------------------------------------------------------------------------


def test_a_handle_cannot_be_called_like_a_function() -> None:
    with pytest.raises(TypeError, match=r"double\.remote"):
        double(1)


def test_local_runs_the_body_here() -> None:
    assert double.local(4) == 8


def test_a_call_of_an_app_that_does_not_run_is_refused() -> None:
    with pytest.raises(exception.ExecutionError, match="not running"):
        double.remote(1)


def test_a_generator_has_no_remote_and_a_function_no_remote_gen() -> None:
    with pytest.raises(exception.InvalidError, match="generator") as caught:
        count.remote(3)
    assert "remote_gen" in caught.value.hint
    with pytest.raises(exception.InvalidError, match="generator"):
        count.spawn(3)
    with pytest.raises(exception.InvalidError, match="not a generator"):
        double.remote_gen(3)


def test_a_handle_is_pickled_by_reference(running: FakeGateway) -> None:
    again = pickle.loads(pickle.dumps(double))
    assert again.remote(4) == 8
    with pytest.raises(exception.ExecutionError):
        again.local(4)


def test_a_function_that_is_looked_up_asks_the_server_at_its_first_use(
    gateway: FakeGateway, connected: session.Session
) -> None:
    gateway.functions["far"] = lambda x: x + 1
    handle = squall.Function.from_name("other", "far")
    assert gateway.requests == []
    with pytest.raises(exception.ExecutionError):
        _ = handle.object_id
    assert handle.remote(1) == 2
    assert handle.object_id == "fu-9"
    assert "/v1/functions?app=other&name=far&environment=main" in gateway.paths("GET")


def test_a_function_that_is_not_there_is_told_at_its_first_use(
    gateway: FakeGateway, connected: session.Session
) -> None:
    handle = squall.Function.from_name("other", "nothing")
    with pytest.raises(exception.NotFoundError):
        handle.remote(1)


def test_a_method_is_not_looked_up_as_a_function() -> None:
    with pytest.raises(exception.InvalidError, match="method") as caught:
        squall.Function.from_name("other", "Model.predict")
    assert "Cls.from_name" in caught.value.hint


# --- generators ------------------------------------------------------------------------------------------------------


def test_items_of_a_generator_come_in_order(running: FakeGateway) -> None:
    assert list(count.remote_gen(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("raised", [FileNotFoundError("gone"), EOFError("short"), ConnectionResetError("far away")])
@pytest.mark.parametrize("items", [0, 2])
def test_what_a_generator_raises_is_never_taken_for_a_broken_connection(
    running: FakeGateway, raised: Exception, items: int
) -> None:
    def failing(_n: int) -> Iterator[int]:
        yield from range(items)
        if begun:
            raise AssertionError("the call was made again")
        begun.append(True)
        raise raised

    begun: list[bool] = []
    running.functions["count"] = failing
    found = count.remote_gen(5)
    assert [next(found) for _ in range(items)] == list(range(items))
    with pytest.raises(type(raised), match=str(raised)):
        next(found)


def test_a_generator_that_is_not_iterated_to_its_end_is_cancelled(running: FakeGateway) -> None:
    items = count.remote_gen(1000)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert len(running.cancelled) == 1


def test_a_generator_that_began_anew_is_not_repeated_silently(running: FakeGateway) -> None:
    running.restarts_after = 2
    with pytest.raises(exception.ExecutionError, match="after 2 items"):
        list(count.remote_gen(5))


def test_a_generator_that_began_anew_before_its_first_item_goes_on(running: FakeGateway) -> None:
    running.restarts_after = 0
    assert list(count.remote_gen(3)) == [0, 1, 2]


def test_items_lost_with_a_connection_are_told(running: FakeGateway) -> None:
    running.items_per_stream = 2
    running.functions["count"] = _shortening()
    with pytest.raises(exception.ExecutionError, match="were lost"):
        list(count.remote_gen(6))


def _shortening():  # type: ignore[no-untyped-def]
    """A generator that is not at its start any more when it is asked for again."""
    items = iter(range(100))
    return lambda n: enumerate_from(items, n)


def enumerate_from(items: Iterator[int], n: int) -> Iterator[int]:
    for _ in range(n):
        yield next(items)


# --- spawned calls ---------------------------------------------------------------------------------------------------


def test_a_spawned_call_has_an_id_and_a_result(running: FakeGateway) -> None:
    call = double.spawn(4)
    assert call.object_id.startswith("fc-")
    assert call.get() == 8
    assert squall.FunctionCall.from_id(call.object_id).get(timeout=5) == 8


def test_get_raises_the_builtin_timeout_error(running: FakeGateway) -> None:
    running.not_yet["double"] = 100
    call = double.spawn(4)
    with pytest.raises(TimeoutError) as caught:
        call.get(timeout=0)
    assert type(caught.value) is TimeoutError
    assert not isinstance(caught.value, exception.TimeoutError)


def test_a_result_that_is_too_old_is_told_by_its_error(running: FakeGateway) -> None:
    call = double.spawn(4)
    route = f"GET {Route.CALL_RESULT.format(call=call.object_id)}"
    running.errors[route] = [exception.OutputExpiredError("too old")]
    with pytest.raises(exception.OutputExpiredError):
        call.get()


def test_gather_keeps_the_order_and_raises_the_first_failure(running: FakeGateway) -> None:
    assert squall.FunctionCall.gather(*[double.spawn(n) for n in range(5)]) == [0, 2, 4, 6, 8]
    with pytest.raises(Refused, match="now"):
        squall.FunctionCall.gather(double.spawn(1), refuse.spawn("now"))


def test_cancel_asks_the_server(running: FakeGateway) -> None:
    call = double.spawn(1)
    call.cancel()
    assert running.cancelled == [call.object_id]


def test_calls_are_values(running: FakeGateway) -> None:
    call = double.spawn(4)
    again = pickle.loads(pickle.dumps(call))
    assert again == call
    assert again.get() == 8


def test_an_id_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(exception.InvalidError):
        squall.FunctionCall.from_id("fc-nonsense")


# --- waiting and broken connections ----------------------------------------------------------------------------------


class Reasons(Output):
    """Keeps why calls waited."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def waiting(self, call: str, reason: str) -> None:
        self.seen.append(reason)


def test_a_call_that_waits_tells_why(running: FakeGateway) -> None:
    running.not_yet["double"] = 2
    reasons = Reasons()
    with use(reasons):
        assert double.remote(3) == 6
    assert reasons.seen == ["no node is free", "no node is free", ""]


def test_a_connection_that_breaks_before_the_answer_does_not_make_a_second_call(running: FakeGateway) -> None:
    ran: list[int] = []
    running.functions["double"] = lambda x: ran.append(x) or 2 * x
    running.break_next.append("POST /v1/calls")
    assert double.remote(3) == 6
    calls = {headers[Header.CALL] for headers in running.headers_of("POST /v1/calls")}
    assert (len(calls), ran) == (1, [3])


def test_a_call_survives_a_restart_of_the_gateway(gateway: FakeGateway) -> None:
    gateway.functions["far"] = lambda x: x
    with serving(gateway) as first:
        port = int(first.url.rpartition(":")[2])
        used = session.connect(first)
        used.client.info()
        handle = squall.Function.from_name("other", "far")
        with session.use(first):
            assert handle.remote(1) == 1
    answers: list[int] = []
    with session.use(first):
        caller = threading.Thread(target=lambda: answers.append(handle.remote(2)))
        caller.start()
        caller.join(0.1)
        assert caller.is_alive()  # nobody listens, and it has not given up
        with serving(gateway, port):
            caller.join(10)
    assert answers == [2]


def test_a_server_that_is_down_is_told_at_once_with_what_to_do(address: ServerAddress) -> None:
    nobody = ServerAddress("http://127.0.0.1:9", "x")
    with session.use(nobody), pytest.raises(exception.ConnectionError, match=r"127\.0\.0\.1:9") as caught:
        squall.Function.from_name("a", "b").remote()
    assert "SQUALL_SERVER_URL" in caught.value.hint


def test_a_wrong_token_is_told_by_its_error(address: ServerAddress) -> None:
    wrong = ServerAddress(address.url, "wrong")
    with session.use(wrong), pytest.raises(exception.AuthError) as caught:
        squall.Function.from_name("a", "b").remote()
    assert "SQUALL_TOKEN" in caught.value.hint


def test_without_a_server_a_lookup_says_how_to_get_one(home: object) -> None:
    with pytest.raises(exception.ConnectionError, match="no server is configured") as caught:
        squall.Function.from_name("a", "b").remote()
    assert "squall up" in caught.value.hint


def test_a_keyed_handle_sends_its_key_and_takes_the_call_that_has_it(running: FakeGateway) -> None:
    keyed = double.with_idempotency_key("order 17")

    first, second = keyed.spawn(4), keyed.spawn(4)

    assert first == second
    assert (first.get(), keyed.remote(4)) == (8, 8)
    sent = [headers.get(Header.IDEMPOTENCY_KEY) for headers in running.headers_of(f"POST {Route.CALLS}")]
    assert sent == ["order 17"] * 3
    assert double.spawn(4) != first


def test_a_keyed_handle_keeps_its_key_as_a_value(running: FakeGateway) -> None:
    call = double.with_idempotency_key("k").spawn(4)

    assert pickle.loads(pickle.dumps(double.with_idempotency_key("k"))).spawn(4) == call


@pytest.mark.parametrize("key", ["", "k" * 256, "ä", "a\nb", " k"])
def test_what_cannot_be_an_idempotency_key_is_refused(key: str) -> None:
    with pytest.raises(exception.InvalidError, match="idempotency key"):
        double.with_idempotency_key(key)


def test_maps_have_no_idempotency_key(running: FakeGateway) -> None:
    with pytest.raises(exception.InvalidError, match=r"for \.remote\(\) and \.spawn\(\)"):
        list(double.with_idempotency_key("k").map([1]))


def test_a_handle_with_a_webhook_sends_it_with_every_call_also_as_a_value_and_beside_a_key(
    running: FakeGateway,
) -> None:
    told = double.with_webhook("https://example.com/a").with_webhook("https://example.com/b?c=d")

    told.spawn(1).get()
    pickle.loads(pickle.dumps(told)).spawn(2).get()
    told.with_idempotency_key("k").with_webhook("https://example.com/k").spawn(3).get()
    double.with_options(webhook="https://example.com/o").spawn(4).get()
    assert list(told.map([5])) == [10]

    sent = [headers.get(Header.WEBHOOK) for headers in running.headers_of(f"POST {Route.CALLS}")]
    b = "https://example.com/b?c=d"
    assert sent == [b, b, "https://example.com/k", "https://example.com/o"]


@pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "https://a:b@example.com", "https://a b"])
def test_what_cannot_be_a_webhook_is_refused(url: str) -> None:
    with pytest.raises(exception.InvalidError, match="webhook must"):
        double.with_webhook(url)


def test_a_server_that_has_no_webhooks_is_not_asked_for_one() -> None:

    old = ServerInfo(version="0.1.0", api_version=1, region="r", shards=1, workspace="w", environment="main")

    with pytest.raises(exception.InvalidError, match="has no webhooks"):
        require_webhooks(old)
