"""An OTLP receiver for tests: gRPC and HTTP on free ports, built on the official protobuf classes.

Keeps what arrives in memory, as plain values. It checks nothing itself and forgets nothing.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

CONTENT_TYPE = "application/x-protobuf"
ERROR_STATUS = 2
POLL_S = 0.01


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire."""

    service: str
    """`service.name` of its resource."""
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    start_ns: int
    end_ns: int
    failed: bool
    attributes: Mapping[str, Any] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    """(trace id, span id) of each."""


class OtlpSink:
    """`with OtlpSink() as sink: sink.grpc_endpoint, sink.http_endpoint, sink.spans()`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[ReceivedSpan] = []
        self._requests = {"grpc": 0, "http": 0}
        self._grpc_server: grpc.Server | None = None
        self._http_server: ThreadingHTTPServer | None = None
        self._http_thread: threading.Thread | None = None
        self._grpc_port = 0

    @property
    def grpc_endpoint(self) -> str:
        return f"http://127.0.0.1:{self._grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """Without the path `/v1/traces`."""
        assert self._http_server is not None
        return f"http://127.0.0.1:{self._http_server.server_port}"

    def __enter__(self) -> Self:
        self._grpc_server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="otlp-grpc"))
        add_TraceServiceServicer_to_server(_GrpcReceiver(self), self._grpc_server)  # type: ignore[no-untyped-call]
        self._grpc_port = self._grpc_server.add_insecure_port("127.0.0.1:0")
        self._grpc_server.start()
        self._http_server = ThreadingHTTPServer(("127.0.0.1", 0), _http_receiver(self))
        self._http_thread = threading.Thread(target=self._http_server.serve_forever, name="otlp-http", daemon=True)
        self._http_thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._grpc_server is not None
        assert self._http_server is not None
        assert self._http_thread is not None
        self._grpc_server.stop(grace=None).wait(5)
        self._http_server.shutdown()
        self._http_server.server_close()
        self._http_thread.join(5)

    def requests(self, protocol: str) -> int:
        """How many exports came over "grpc" or "http"."""
        with self._lock:
            return self._requests[protocol]

    def spans(self, trace_id: str | None = None) -> list[ReceivedSpan]:
        """What has arrived so far, of one trace or of all."""
        with self._lock:
            return [span for span in self._spans if trace_id in (None, span.trace_id)]

    def wait_for(self, trace_id: str, *names: str, within_s: float = 30.0) -> list[ReceivedSpan]:
        """The spans of a trace once all these names are among them."""
        until = time.monotonic() + within_s
        while True:
            found = self.spans(trace_id)
            missing = set(names) - {span.name for span in found}
            if not missing:
                return found
            if time.monotonic() > until:
                raise AssertionError(f"no {sorted(missing)} within {within_s} s; there are {[s.name for s in found]}")
            time.sleep(POLL_S)

    def take(self, protocol: str, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Store one export. For the receivers."""
        received = [span for group in request.resource_spans for span in _spans_of(group)]
        with self._lock:
            self._requests[protocol] += 1
            self._spans.extend(received)
        return ExportTraceServiceResponse()


def _spans_of(resource_spans: Any) -> list[ReceivedSpan]:
    resource = {a.key: _plain(a.value) for a in resource_spans.resource.attributes}
    return [
        ReceivedSpan(
            service=str(resource.get("service.name", "")),
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            failed=span.status.code == ERROR_STATUS,
            attributes={a.key: _plain(a.value) for a in span.attributes},
            links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        )
        for scope in resource_spans.scope_spans
        for span in scope.spans
    ]


def _plain(value: Any) -> Any:
    """An `AnyValue` as the Python value it stands for."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


class _GrpcReceiver(TraceServiceServicer):
    def __init__(self, sink: OtlpSink) -> None:
        self._sink = sink

    def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
        return self._sink.take("grpc", request)


def _http_receiver(sink: OtlpSink) -> type[BaseHTTPRequestHandler]:
    class Receiver(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path != "/v1/traces" or self.headers["content-type"] != CONTENT_TYPE:
                self._answer(404, b"")
                return
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            answer = sink.take("http", ExportTraceServiceRequest.FromString(body))
            self._answer(200, answer.SerializeToString())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", CONTENT_TYPE)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are not written to the test's output."""

    return Receiver
