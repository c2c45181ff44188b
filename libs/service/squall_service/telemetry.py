"""Metrics and traces of one process, through OpenTelemetry; and `log`, the event log that everybody uses.

No globals of OpenTelemetry are set: meter and tracer come with the ServiceContext, so that several services of one
process, and tests, do not share them by accident.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from squall_service.logs import EventLog, LogFormat, configure_logging, current_service, log
from squall_service.settings import ServiceSettings, settings_config

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from prometheus_client import CollectorRegistry

__all__ = [
    "EventLog",
    "LogFormat",
    "Telemetry",
    "TelemetrySettings",
    "configure_logging",
    "current_service",
    "log",
    "open_telemetry",
]

FLUSH_S = 3.0
"""How long the last spans may take to leave at shutdown: an unreachable collector must not hold up a drain."""


class TelemetrySettings(ServiceSettings):
    """Where logs, metrics and traces go."""

    model_config = settings_config("TELEMETRY")

    log_format: LogFormat = "auto"
    """`json`, `human`, or `auto`: human on a terminal, JSON otherwise."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = None
    """Collector that gets the spans; nothing is exported when it is not set."""
    otlp_protocol: Literal["grpc", "http"] = "grpc"


class _Provider(Protocol):
    def shutdown(self) -> None: ...


class Telemetry:
    """Meter, tracer and the text of `/metrics`."""

    def __init__(self, meters: MeterProvider, traces: TracerProvider, registry: CollectorRegistry) -> None:
        self._meters = meters
        self._traces = traces
        self._registry = registry

    def meter(self, name: str) -> Meter:
        return self._meters.get_meter(name)

    def tracer(self, name: str) -> Tracer:
        return self._traces.get_tracer(name)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        from prometheus_client import generate_latest  # costs 25 ms, and only scrapers need it

        return generate_latest(self._registry)

    async def close(self, within_s: float = FLUSH_S) -> bool:
        """Flush and shut down; False when it took too long and was left behind."""
        done = [await _bounded(provider.shutdown, within_s) for provider in (self._traces, self._meters)]
        return all(done)


async def _bounded(work: Callable[[], None], within_s: float) -> bool:
    """Run blocking work in a daemon thread: one from the pool would keep the process alive until it ends."""
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(finished.set)

    threading.Thread(target=run, name="telemetry-shutdown", daemon=True).start()
    try:
        async with asyncio.timeout(within_s):
            await finished.wait()
    except TimeoutError:
        return False
    return True


def open_telemetry(
    service: str, settings: TelemetrySettings | None = None, exporter: SpanExporter | None = None
) -> Telemetry:
    """Providers of one service. Imported only here: the SDK costs 60 ms, which CLI and tools do not need."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from prometheus_client import CollectorRegistry

    resource = Resource.create({"service.name": f"squall-{service}"})
    registry = CollectorRegistry(auto_describe=False)
    reader = PrometheusMetricReader(registry=registry, disable_target_info=True, scope_info_enabled=False)
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = exporter or _otlp_exporter(settings or TelemetrySettings())
    if exporter is not None:
        traces.add_span_processor(BatchSpanProcessor(exporter))
    meters = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    return Telemetry(meters, traces, registry)


def _otlp_exporter(settings: TelemetrySettings) -> SpanExporter | None:
    if settings.otlp_endpoint is None:
        return None
    if settings.otlp_protocol == "http":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

        return Http(endpoint=settings.otlp_endpoint)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

    return Grpc(endpoint=settings.otlp_endpoint, insecure=settings.otlp_endpoint.startswith("http://"))
