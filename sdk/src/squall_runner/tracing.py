"""Spans of user code become children of the attempt: its W3C context is handed to what the user's image has.

`squall_runner` does not need OpenTelemetry; if the image has it, its current context is set.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def prepare() -> None:
    """Load the image's OpenTelemetry, if it has one: code that imports it in the function finds its context set."""
    try:
        importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        importlib.import_module("opentelemetry.context")
    except Exception:  # noqa: BLE001  # whatever a broken one raises is no reason not to run
        return


class parent:
    """Context manager: spans opened within it belong to `traceparent`."""

    def __init__(self, traceparent: str, alone: bool) -> None:
        self._traceparent = traceparent
        self._alone = alone  # several inputs at once share one environment: no variable then
        self._token: Any = None

    def __enter__(self) -> None:
        if not self._traceparent:
            return
        if self._alone:
            os.environ["TRACEPARENT"] = self._traceparent
        if "opentelemetry.trace" in sys.modules:
            self._token = _attach(self._traceparent)

    def __exit__(self, *_: object) -> None:
        if self._traceparent and self._alone:
            os.environ.pop("TRACEPARENT", None)
        if self._token is not None:
            sys.modules["opentelemetry.context"].detach(self._token)


def _attach(traceparent: str) -> Any:
    try:
        propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        context = importlib.import_module("opentelemetry.context")
    except ImportError:
        return None  # a version with other module names: the user's spans stay roots
    extracted = propagation.TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    return context.attach(extracted)
