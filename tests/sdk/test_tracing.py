"""The caller's part of a trace, and what it costs the caller (nothing)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sdk.fake_gateway import FakeGateway

import squall
from squall import session, tracing
from squall.config import ServerAddress
from squall.http_api.protocol import Header
from squall.ids import in_sample

SRC = Path(__file__).resolve().parents[2] / "sdk" / "src"
app = squall.App("tracing")


@app.function()
def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def running(gateway: FakeGateway, connected: session.Session) -> Iterator[FakeGateway]:
    """The app, running on the gateway."""
    gateway.serve(app)
    with app.run():
        yield gateway


def test_a_call_and_the_decoding_of_its_result_are_rows_of_its_trace(
    running: FakeGateway, connected: session.Session
) -> None:
    double.remote(1)
    connected.recorder.flush()
    batch = running.spans[-1]
    headers = running.headers_of("POST /v1/calls")[-1]
    assert headers[Header.TRACEPARENT] == f"00-{batch['trace_id']}-{batch['parent_id']}-01"
    assert (batch["call"], batch["index"], batch["attempt"]) == (headers[Header.CALL], 0, "")
    (name, parent, service, start, duration, attributes), decode = batch["rows"]
    assert (name, parent, service) == ("call", "", "sdk")
    assert attributes == {"span_id": batch["parent_id"], "function": "double"}
    assert decode[0] == "result.decode"
    assert start <= decode[3] <= decode[3] + decode[4] <= start + duration + 1_000_000


def test_a_failure_is_told_on_the_span(running: FakeGateway, connected: session.Session) -> None:
    running.functions["double"] = lambda x: 1 / x
    with pytest.raises(ZeroDivisionError):
        double.remote(0)
    connected.recorder.flush()
    assert running.spans[-1]["rows"][0][5]["error"] == "ZeroDivisionError: division by zero"


def test_the_users_own_span_is_the_parent(running: FakeGateway, connected: session.Session) -> None:
    from opentelemetry import trace

    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        double.remote(1)
    connected.recorder.flush()
    batch = running.spans[-1]
    assert batch["trace_id"] == f"{0xABC:032x}"
    assert batch["rows"][0][5]["parent_span_id"] == f"{0xDEF:016x}"


@pytest.mark.parametrize(("flags", "recorded"), [(0, False), (1, True)])
def test_a_call_in_a_trace_of_the_users_is_recorded_if_that_is(
    running: FakeGateway, connected: session.Session, flags: int, recorded: bool
) -> None:
    from opentelemetry import trace

    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(flags))
    with trace.use_span(trace.NonRecordingSpan(context)):
        double.remote(1)
    connected.recorder.flush()
    assert running.headers_of("POST /v1/calls")[-1][Header.TRACEPARENT].endswith(f"-0{flags}")
    assert bool(running.spans) == recorded


def test_the_server_says_how_many_traces_are_recorded(running: FakeGateway, address: ServerAddress) -> None:
    running.trace_ratio = 0.0
    with session.use(ServerAddress(address.url.replace("127.0.0.1", "localhost"), address.token)) as unsampled:
        squall.Function.from_name("tracing", "double").remote(1)
        double_many = squall.Function.from_name("tracing", "double")
        assert list(double_many.map([1, 2])) == [2, 4]
        double_many.spawn_map([1, 2])
        unsampled.recorder.flush()
    flags = {headers[Header.TRACEPARENT][-3:] for _, _, headers in running.requests if Header.TRACEPARENT in headers}
    assert flags == {"-00"}
    assert running.spans == []


def test_a_part_of_all_traces_is_recorded_and_everybody_finds_the_same_part() -> None:
    ids = [f"{n:032x}" for n in range(0, 1 << 64, 1 << 54)]
    for ratio, expected in ((0.0, 0), (0.25, 256), (1.0, 1024)):
        assert sum(in_sample(trace_id, ratio) for trace_id in ids) == expected


def test_in_a_container_an_attempt_that_is_not_recorded_makes_calls_that_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    monkeypatch.setenv("TRACEPARENT", f"00-{'1' * 32}-{'2' * 16}-00")
    assert tracing.begin(1.0).traceparent.endswith("-00")
    monkeypatch.setenv("TRACEPARENT", f"00-{'1' * 32}-{'2' * 16}-01")
    assert tracing.begin(0.0).traceparent.endswith("-01")


def test_in_a_container_the_running_attempt_is_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'1' * 32}-{'2' * 16}-01")
    assert tracing.begin().trace_id != "1" * 32  # not ours here: some other tool may have set it
    monkeypatch.setenv("SQUALL_CONTAINER", "1")
    span = tracing.begin()
    assert (span.trace_id, span.parent_span_id) == ("1" * 32, "2" * 16)


def test_a_call_names_the_call_that_makes_it(running: FakeGateway) -> None:
    from squall_runner import context

    with context.running(context.CurrentInput("fc-" + "0" * 26, 3, 1)):
        assert squall.current_function_call_id() == "fc-" + "0" * 26
        assert squall.current_input_id() == f"fc-{'0' * 26}:3"
        double.remote(1)
    assert running.headers_of("POST /v1/calls")[-1][Header.PARENT] == "fc-" + "0" * 26
    assert squall.current_function_call_id() is None


def test_rows_that_cannot_be_posted_are_dropped_and_harm_nobody(running: FakeGateway) -> None:
    from squall.errors import InternalError

    running.errors["POST /v1/spans"] = [InternalError("no")] * 1000
    for _ in range(20):
        double.remote(1)
    session.current().recorder.flush()
    assert len(session.current().recorder._queue) == 0


@pytest.mark.slow
def test_a_program_ends_within_a_second_when_nobody_takes_its_rows() -> None:
    code = """
import socket, time
from squall import session, tracing
from squall.config import ServerAddress
from squall.config import ServerAddress
silent = socket.create_server(("127.0.0.1", 0))
here = session.connect(ServerAddress(f"http://127.0.0.1:{silent.getsockname()[1]}", "x"))
here.recorder.call_ended(tracing.begin(), "fc-x", "f", (0, 0), "")
print(time.time())
"""
    command = [sys.executable, "-c", code]
    answer = subprocess.run(
        command, env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True, timeout=60
    )
    assert time.time() - float(answer.stdout) < 2.5
