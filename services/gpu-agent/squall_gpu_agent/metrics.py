"""Metrics of the agent. Names are API.

What happens on the call path is counted in plain integers and read when somebody scrapes: recording one value with
OpenTelemetry costs 40 us, a sixth of what the agent may spend on a call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation


class Metrics:
    """Counters and histograms, made once."""

    def __init__(self, meter: Meter) -> None:
        self._attempts: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        meter.create_observable_counter(
            "squall_attempts", [self._observe_attempts], description="Attempts that ended, by outcome"
        )
        meter.create_observable_counter(
            "squall_attempt_seconds", [self._observe_seconds], unit="s", description="Time in user code, by outcome"
        )
        self._starts = meter.create_counter("squall_container_starts", description="Containers started, by result")
        self._start_times = meter.create_histogram(
            "squall_container_start_seconds", unit="s", description="Time from an accepted claim to ready"
        )
        meter.create_observable_gauge(
            "squall_gpus", [self._observe_gpus], description="Devices, by type and state (free, used, trouble)"
        )
        self.gpus: Callable[[], Iterable[tuple[str, str]]] = tuple
        """Type and state of each device."""
        self._refusals = meter.create_counter("squall_claims_refused", description="Proposed containers refused")

    def attempt_ended(self, outcome: str, run_s: float) -> None:
        """One attempt."""
        self._attempts[outcome] += 1
        self._seconds[outcome] = self._seconds.get(outcome, 0.0) + max(0.0, run_s)

    def _observe_attempts(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {"outcome": outcome}) for outcome, count in self._attempts.items()]

    def _observe_seconds(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(seconds, {"outcome": outcome}) for outcome, seconds in self._seconds.items()]

    def _observe_gpus(self, _: CallbackOptions) -> Iterable[Observation]:
        counts = Counter(self.gpus())
        return [Observation(count, {"type": kind, "state": state}) for (kind, state), count in counts.items()]

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
