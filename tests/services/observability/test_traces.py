"""One trace per call: its spans as OTLP over gRPC and HTTP, its phases, and user code's own spans in it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.otlp_sink import OtlpSink, ReceivedSpan
from tests.support.platform import Platform, eventually

import squall
from squall.http_api.traces import PhaseInfo, Trace
from squall.spec import from_wire

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "programs" / "traced.py"
PARENTS = {
    # span: its parent, as docs/howto/tracing.md draws them
    "args.encode": "call",
    "gateway.accept": "call",
    "journal.publish": "gateway.accept",
    "queue.wait": "call",
    "autoscaler.decide": "call",
    "scheduler.place": "call",
    "container.start": "call",
    "agent.accept": "container.start",
    "sandbox.create": "container.start",
    "runner.connect": "container.start",
    "code.import": "container.start",
    "dispatch": "call",
    "attempt": "call",
    "user.code": "attempt",
    "result.publish": "call",
    "result.return": "call",
    "result.decode": "call",
}
SERVICES = {
    "call": "sdk",
    "args.encode": "sdk",
    "gateway.accept": "gateway",
    "journal.publish": "gateway",
    "autoscaler.decide": "autoscaler",
    "scheduler.place": "scheduler",
    "container.start": "gpu-agent",
    "attempt": "gpu-agent",
    "user.code": "runner",
    "result.publish": "gpu-agent",
    "result.return": "gateway",
    "result.decode": "sdk",
}
WARM = {
    "call",
    "args.encode",
    "gateway.accept",
    "journal.publish",
    "dispatch",
    "attempt",
    "user.code",
    "result.publish",
}
START = {"autoscaler.decide", "scheduler.place", "container.start", "sandbox.create", "runner.connect", "code.import"}
LEAST_PHASES = 9
MOST_OTHER = 0.05


@dataclass(frozen=True)
class Traced:
    """A platform that exports to a sink."""

    platform: Platform
    sink: OtlpSink
    protocol: str

    def trace(self, call: str) -> Trace:
        """What the gateway says about a call once the spans of its caller, gateway and agent have arrived."""

        def complete() -> Trace | None:
            found = self._get(call)
            return found if {"call", "result.return", "attempt"} <= {span.name for span in found.spans} else None

        return eventually(complete, what=lambda: self._get(call))

    def _get(self, call: str) -> Trace:
        request = urllib.request.Request(
            f"{self.platform.url}/v1/calls/{call}/trace", headers={"Authorization": f"Bearer {self.platform.token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return from_wire(Trace, json.load(answer))


@pytest.fixture(scope="module", params=["grpc", "http"])
def traced(request: pytest.FixtureRequest) -> Iterator[Traced]:
    """One platform for each protocol, with `traced` deployed."""
    with OtlpSink() as sink:
        endpoint = sink.grpc_endpoint if request.param == "grpc" else sink.http_endpoint
        environment = {"SQUALL_GATEWAY_OTLP_ENDPOINT": endpoint, "SQUALL_GATEWAY_OTLP_PROTOCOL": request.param}
        with Platform(environment=environment) as platform:
            platform.squall("deploy", PROGRAM, timeout_s=120)
            yield Traced(platform, sink, request.param)


@pytest.fixture
def client(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """The SDK of this process talks to the platform."""
    for name in ("SQUALL_SERVER_URL", "SQUALL_TOKEN", "SQUALL_HOME"):
        monkeypatch.setenv(name, traced.platform.client_environment()[name])
    return traced


def by_name(spans: list[ReceivedSpan]) -> dict[str, ReceivedSpan]:
    """The spans of a trace of one attempt. Only the start of a container may do one thing twice: to its template, and
    to the container that is forked from it."""
    assert len({span.span_id for span in spans}) == len(spans), "one span twice"
    found: dict[str, ReceivedSpan] = {}
    for span in spans:
        assert span.name not in found or span.name in START, f"{span.name} twice"
        found[span.name] = span
    return found


def last_call(traced: Traced, function: str) -> str:
    """Id of the newest call of a function; `remote` does not tell it."""
    request = urllib.request.Request(
        f"{traced.platform.url}/v1/calls?limit=20", headers={"Authorization": f"Bearer {traced.platform.token}"}
    )

    def found() -> str | None:
        with urllib.request.urlopen(request, timeout=10) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["calls"]
        return next((str(row["call"]) for row in rows if function in row["function"]), None)

    return eventually(found)


def function(name: str) -> squall.Function:
    return squall.Function.from_name("traced", name)


def test_a_cold_call_is_one_trace_with_the_documented_tree(client: Traced) -> None:
    assert squall.Cls.from_name("traced", "Entered")(pool=1).answer.remote() is True
    trace = client.trace(last_call(client, "Entered"))

    spans = by_name(client.sink.wait_for(trace.trace_id, *PARENTS, "enter", "call"))

    assert spans["call"].parent_id == ""
    for name, parent in PARENTS.items():
        assert spans[name].parent_id == spans[parent].span_id, f"{name} is not a child of {parent}"
    for name, service in SERVICES.items():
        assert spans[name].service.removeprefix("squall-") == service, name
    assert spans["enter"].parent_id == spans["container.start"].span_id
    assert not any(span.failed for span in spans.values())
    assert spans["attempt"].attributes["squall.cold"] is True
    for name in ("squall.container", "squall.node"):
        assert spans["attempt"].attributes[name]
    assert client.sink.requests(client.protocol) > 0
    assert client.sink.requests({"grpc": "http", "http": "grpc"}[client.protocol]) == 0


def test_spans_lie_inside_their_parents(client: Traced) -> None:
    squall.Cls.from_name("traced", "Entered")(pool=2).answer.remote()
    trace = client.trace(last_call(client, "Entered"))

    spans = {span.span_id: span for span in trace.spans}

    slack_ns = 2_000_000  # clocks are read on both sides of a hand-over
    for span in trace.spans:
        assert span.start_ns <= span.end_ns, span
        if parent := spans.get(span.parent_id):
            assert parent.start_ns - slack_ns <= span.start_ns, f"{span.name} begins before {parent.name}"
            assert span.end_ns <= parent.end_ns + slack_ns, f"{span.name} ends after {parent.name}"


def test_a_warm_call_has_no_start_in_its_trace(client: Traced) -> None:
    plain = function("plain")
    plain.remote(1)
    plain.remote(2)

    trace = client.trace(last_call(client, "plain"))

    names = {span.name for span in trace.spans}
    assert names >= WARM
    assert not names & START


def check_phases(trace: Trace) -> dict[str, PhaseInfo]:
    phases = sorted(trace.phases, key=lambda phase: phase.start_ns)
    named = [phase for phase in phases if phase.name != "other" and phase.duration_ns > 0]
    for earlier, later in pairwise(named):
        assert earlier.start_ns + earlier.duration_ns <= later.start_ns, f"{earlier} overlaps {later}"
    other = sum(phase.duration_ns for phase in phases if phase.name == "other")
    assert sum(phase.duration_ns for phase in phases) == pytest.approx(trace.wall_ns, rel=0.01)
    assert other <= MOST_OTHER * trace.wall_ns, f"{other / trace.wall_ns:.1%} other in {phases}"
    return {phase.name: phase for phase in named}


@pytest.mark.parametrize("pool", range(10, 15))
def test_phases_of_a_cold_call_cover_its_time_without_overlap(client: Traced, pool: int) -> None:
    squall.Cls.from_name("traced", "Entered")(pool=pool).answer.remote()

    named = check_phases(client.trace(last_call(client, "Entered")))

    assert len(named) >= LEAST_PHASES, sorted(named)


def test_the_first_call_of_a_function_is_covered_too(client: Traced, tmp_path: Path) -> None:
    program = tmp_path / "fresh.py"
    program.write_text(PROGRAM.read_text().replace('App("traced")', 'App("fresh")'))
    client.platform.squall("deploy", program)

    squall.Function.from_name("fresh", "plain").remote(1)

    named = check_phases(client.trace(last_call(client, "plain")))
    assert len(named) >= LEAST_PHASES, sorted(named)


def test_the_command_shows_the_tree_and_the_phases(client: Traced) -> None:
    squall.Cls.from_name("traced", "Entered")(pool=3).answer.remote()
    call = last_call(client, "Entered")
    client.trace(call)

    shown = client.platform.squall("trace", call).stdout

    for name in ("call", "gateway.accept", "container.start", "sandbox.create", "attempt", "user.code", "total"):
        assert name in shown, f"no {name} in\n{shown}"


def test_spans_of_user_code_are_children_of_the_attempt(client: Traced) -> None:
    assert function("instrumented").remote(client.sink.http_endpoint) == "done"
    trace = client.trace(last_call(client, "instrumented"))

    spans = by_name(client.sink.wait_for(trace.trace_id, "attempt", "prepare", "load"))

    assert spans["prepare"].service == "user-program"
    assert spans["prepare"].parent_id == spans["attempt"].span_id
    assert spans["load"].parent_id == spans["prepare"].span_id


def test_a_call_from_a_container_belongs_to_the_trace_of_its_caller(client: Traced) -> None:
    function("plain").remote(0)
    assert function("outer").remote(5) == 5
    trace = client.trace(last_call(client, "outer"))

    def both() -> list[ReceivedSpan] | None:
        calls = [span for span in client.sink.spans(trace.trace_id) if span.name == "call"]
        return calls if len(calls) == 2 else None

    inner, outer = sorted(eventually(both, what=lambda: client.sink.spans(trace.trace_id)), key=lambda s: s.end_ns)
    attempts = [s.span_id for s in client.sink.spans(trace.trace_id) if s.name == "attempt"]
    assert outer.parent_id == ""
    assert inner.parent_id in attempts


def test_a_failed_call_is_marked(client: Traced) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        function("broken").remote()
    trace = client.trace(last_call(client, "broken"))

    spans = {span.name: span for span in client.sink.wait_for(trace.trace_id, "call", "attempt", "user.code")}

    assert spans["call"].failed
    assert spans["attempt"].failed


def test_the_callers_own_span_is_the_parent_of_the_call(client: Traced) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("caller").start_as_current_span("mine") as mine:
        function("plain").remote(3)
    context = mine.get_span_context()

    spans = by_name(client.sink.wait_for(f"{context.trace_id:032x}", "call", "attempt"))

    assert spans["call"].parent_id == f"{context.span_id:016x}"
