"""Logs are events with fields; metrics and spans leave the process; shutdown is bounded."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from squall_service.telemetry import configure_logging, log, open_telemetry


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def output(restored_logging: None) -> io.StringIO:
    return io.StringIO()


def test_an_event_is_one_json_line_with_its_fields(output: io.StringIO) -> None:
    configure_logging("json", stream=output)
    log.info("container_placed", container="c-1", node="gpu-3", event="a field that is called event")

    line = json.loads(output.getvalue())
    assert line["level"] == "info"
    assert line["container"] == "c-1"
    assert line["at"].endswith("+00:00")


def test_an_event_for_people_is_one_readable_line(output: io.StringIO) -> None:
    configure_logging("human", stream=output)
    log.bind(node="gpu-3").warning("image_pull_slow", image="a b", seconds=3)

    assert 'image_pull_slow node=gpu-3 image="a b" seconds=3' in output.getvalue()
    assert "warning" in output.getvalue()


def test_an_error_brings_its_traceback(output: io.StringIO) -> None:
    configure_logging("json", stream=output)
    try:
        raise RuntimeError("broken")
    except RuntimeError as error:
        log.error("call_failed", error=error, call="fc-1")

    line = json.loads(output.getvalue())
    assert "RuntimeError: broken" in line["traceback"]
    assert line["call"] == "fc-1"


def test_levels_are_kept(output: io.StringIO) -> None:
    configure_logging("json", "warning", stream=output)
    log.info("not_shown")
    log.error("shown")
    assert [json.loads(line)["event"] for line in output.getvalue().splitlines()] == ["shown"]


def test_events_of_the_bus_are_printed_the_same_way(output: io.StringIO) -> None:
    configure_logging("json", stream=output)
    logging.getLogger("squall_bus").warning("bus_disconnected", extra={"fields": {"url": "nats://x"}})
    line = json.loads(output.getvalue())
    assert (line["event"], line["url"]) == ("bus_disconnected", "nats://x")


async def test_metrics_are_exposed_as_prometheus_text() -> None:
    telemetry = open_telemetry("example")
    counter = telemetry.meter("squall").create_counter("squall_calls_total")
    counter.add(3, {"pool": "p1"})
    telemetry.meter("squall").create_histogram("squall_wait_seconds").record(0.2)

    text = telemetry.exposition().decode()
    assert 'squall_calls_total{pool="p1"} 3.0' in text
    assert "squall_wait_seconds_bucket" in text
    assert await telemetry.close()


async def test_two_services_of_one_process_do_not_share_metrics() -> None:
    one, two = open_telemetry("one"), open_telemetry("two")
    one.meter("squall").create_counter("squall_calls_total").add(1)
    two.meter("squall").create_counter("squall_calls_total").add(5)

    assert "squall_calls_total 1.0" in one.exposition().decode()
    assert "squall_calls_total 5.0" in two.exposition().decode()
    assert await one.close()
    assert await two.close()


class Collector(SpanExporter):
    """Keeps what it gets; may hang."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.names: list[str] = []
        self.released = threading.Event()
        if not hangs:
            self.released.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.released.wait(30)
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS


async def test_spans_are_exported_at_the_latest_when_telemetry_is_closed() -> None:
    collector = Collector()
    telemetry = open_telemetry("example", exporter=collector)
    with telemetry.tracer("squall").start_as_current_span("gateway.accept"):
        pass

    assert await telemetry.close()
    assert collector.names == ["gateway.accept"]


async def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    collector = Collector(hangs=True)
    telemetry = open_telemetry("example", exporter=collector)
    with telemetry.tracer("squall").start_as_current_span("gateway.accept"):
        pass

    assert not await telemetry.close(within_s=0.1)
    collector.released.set()
