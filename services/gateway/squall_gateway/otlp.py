"""OTLP export: the rows in SPANS, expanded, to a collector. The only importer of OpenTelemetry's exporters here.

A durable consumer: what a stopped gateway did not export, the next one does. Ids are kept, so that users' own spans,
exported from wherever their code runs, fit in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from squall.http_api.traces import SpanInfo
from squall_bus import Bus, ConsumerSpec, Delivery
from squall_contracts import subjects
from squall_contracts.envelope import BadMessage
from squall_contracts.spans import CALL, SpanBatch, expand
from squall_service.telemetry import log

CONSUMER = "otlp"
BATCH = 200
"""Messages (each an attempt's spans) in one export."""
LINGER_S = 0.2
ACK_WAIT_S = 60.0
RETRY_S = 5.0
GIVE_UP = 20
"""Deliveries after which spans that no collector takes are dropped."""
EXPORT_S = 10.0
_SCOPE = InstrumentationScope("squall")
_REMOTE = TraceFlags(TraceFlags.SAMPLED)


def open_exporter(endpoint: str, protocol: Literal["grpc", "http"], headers: Mapping[str, str]) -> SpanExporter:
    """A client of the collector. Imported late: 100 ms that only those pay who export."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        insecure = not endpoint.startswith("https://")
        return Grpc(endpoint=endpoint, insecure=insecure, headers=dict(headers) or None, timeout=EXPORT_S)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return Http(endpoint=traces_url(endpoint), headers=dict(headers) or None, timeout=EXPORT_S)


def traces_url(endpoint: str) -> str:
    """Collectors take spans at `/v1/traces`; an endpoint may be given with or without it."""
    return endpoint if endpoint.rstrip("/").endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"


class OtlpExport:
    """One task: pull, expand, export, ack."""

    def __init__(self, bus: Bus, exporter: SpanExporter) -> None:
        self._bus = bus
        self._exporter = exporter
        self._resources: dict[str, Resource] = {}
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self.exported = 0

    async def run(self) -> None:
        """Export until cancelled."""
        region = self._bus.topology.region
        stream = subjects.spans_stream(region)
        await self._bus.ensure_consumer(
            stream,
            ConsumerSpec(
                name=CONSUMER,
                filter_subject=subjects.spans(region, ">"),
                ack_wait_s=ACK_WAIT_S,
                max_deliver=GIVE_UP,
                prioritized=False,
            ),
        )
        puller = await self._bus.pull(stream, CONSUMER, self._waiting.put_nowait, group=None)
        try:
            while True:
                puller.want(BATCH)
                await self.export(await self._batch())
        finally:
            await puller.close()
            await self._flush()

    async def _batch(self) -> list[Delivery]:
        """What has come: at least one, and whatever follows within a moment."""
        batch = [await self._waiting.get()]
        try:
            async with asyncio.timeout(LINGER_S):
                while len(batch) < BATCH:
                    batch.append(await self._waiting.get())
        except TimeoutError:
            pass
        return batch

    async def export(self, batch: Sequence[Delivery]) -> None:
        """Hand spans to the collector; those that it does not take come again later."""
        spans = [span for delivery in batch for span in self._spans(delivery)]
        result = await asyncio.to_thread(self._exporter.export, spans) if spans else SpanExportResult.SUCCESS
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
            for delivery in batch:
                delivery.ack()
            return
        log.warning("otlp_export_failed", spans=len(spans))
        for delivery in batch:
            delivery.nak(RETRY_S)

    async def _flush(self) -> None:
        """What has arrived goes out, if the collector takes it quickly; the rest is the next gateway's."""
        batch = [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
        try:
            async with asyncio.timeout(1.0):
                await self.export(batch)
        except TimeoutError:
            log.warning("otlp_flush_timed_out", batches=len(batch))
        self._exporter.shutdown()

    def _spans(self, delivery: Delivery) -> list[ReadableSpan]:
        try:
            batch = SpanBatch.decode(delivery.data)
            return [self._readable(span) for span in expand(batch)]
        except (BadMessage, ValueError) as error:
            log.warning("spans_not_understood", subject=delivery.subject, reason=str(error))
            return []

    def _readable(self, span: SpanInfo) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
            resource=self._resource(span.service),
            attributes={f"squall.{key}": _attribute(value) for key, value in span.attributes.items()},
            links=[Link(_context(span.trace_id, link)) for link in span.links],
            kind=SpanKind.CLIENT if span.name == CALL else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )

    def _resource(self, service: str) -> Resource:
        resource = self._resources.get(service)
        if resource is None:
            resource = self._resources[service] = Resource({"service.name": f"squall-{service}"})
        return resource


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=_REMOTE)


def _attribute(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)
