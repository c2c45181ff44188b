"""The receiver of these tests, itself tested with the official exporters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Status, StatusCode
from tests.support.otlp_sink import OtlpSink

EXPORTERS: dict[str, Callable[[OtlpSink], SpanExporter]] = {
    "grpc": lambda sink: GrpcExporter(endpoint=sink.grpc_endpoint, insecure=True),
    "http": lambda sink: HttpExporter(endpoint=sink.http_endpoint + "/v1/traces"),
}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", EXPORTERS)
def test_a_span_comes_back_with_everything_that_was_sent(protocol: str) -> None:
    with OtlpSink() as sink:
        provider = TracerProvider(resource=Resource.create({"service.name": "sender"}))
        provider.add_span_processor(SimpleSpanProcessor(EXPORTERS[protocol](sink)))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("parent") as parent:
            child = tracer.start_span("child", links=[Link(parent.get_span_context())], attributes={"n": 1, "l": ["x"]})
            child.set_status(Status(StatusCode.ERROR, "broken"))
            child.end()
        provider.shutdown()

        trace_id = f"{parent.get_span_context().trace_id:032x}"
        spans = {span.name: span for span in sink.wait_for(trace_id, "parent", "child")}

    assert spans["child"].parent_id == spans["parent"].span_id
    assert spans["parent"].parent_id == ""
    assert spans["child"].service == "sender"
    assert spans["child"].attributes == {"n": 1, "l": ["x"]}
    assert spans["child"].links == ((trace_id, spans["parent"].span_id),)
    assert spans["child"].failed
    assert not spans["parent"].failed
    assert spans["child"].start_ns <= spans["child"].end_ns
    assert sink.requests(protocol) == 2
