"""Metrics of the agent. Names are API."""

from __future__ import annotations

from opentelemetry.metrics import Meter


class Metrics:
    """Counters and histograms, made once."""

    def __init__(self, meter: Meter) -> None:
        self._attempts = meter.create_counter("squall_attempts", description="Attempts that ended, by outcome")
        self._durations = meter.create_histogram("squall_attempt_seconds", unit="s", description="Time in user code")
        self._starts = meter.create_counter("squall_container_starts", description="Containers started, by result")
        self._start_times = meter.create_histogram(
            "squall_container_start_seconds", unit="s", description="Cold starts"
        )
        self._refusals = meter.create_counter("squall_claims_refused", description="Proposed containers refused")
        self._labels: dict[str, dict[str, str]] = {}

    def attempt_ended(self, outcome: str, run_s: float) -> None:
        """One attempt."""
        labels = self._labels.setdefault(outcome, {"outcome": outcome})
        self._attempts.add(1, labels)
        self._durations.record(max(0.0, run_s))

    def container_started(self, how: str, start_s: float) -> None:
        """A container became ready."""
        self._starts.add(1, {"result": how})
        self._start_times.record(start_s)

    def container_failed(self, kind: str) -> None:
        """A container could not be started."""
        self._starts.add(1, {"result": kind})

    def claim_refused(self) -> None:
        """The scheduler's proposal was refused."""
        self._refusals.add(1)
