"""User code with OpenTelemetry of its own, which exports by itself to the address that the caller passes."""

import squall

app = squall.App("traced")
image = squall.Image.debian_slim().uv_pip_install(
    "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"
)


@app.function(image=image)
def instrumented(endpoint):
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "user-program"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=endpoint + "/v1/traces")))
    tracer = trace.get_tracer("traced", tracer_provider=provider)
    with tracer.start_as_current_span("prepare"), tracer.start_as_current_span("load"):
        pass
    provider.shutdown()
    return "done"


@app.function()
def plain(value):
    return value


@app.cls()
class Entered:
    pool: int = squall.parameter(default=0)

    @squall.enter()
    def prepare(self):
        self.ready = True

    @squall.method()
    def answer(self):
        return self.ready


@app.function()
def outer(value):
    return plain.remote(value)


@app.function()
def broken():
    raise ValueError("on purpose")
