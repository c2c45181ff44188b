"""Counts of the builder, read by the meter when somebody scrapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from opentelemetry.metrics import Meter, Observation


class Metrics:
    """Finished builds by their end, and how many are running."""

    def __init__(self) -> None:
        self.builds: Counter[str] = Counter()
        """ready, failed, answered (there was an answer already), broke_down."""

    def observe(self, meter: Meter, building: Callable[[], int]) -> None:
        """Make everything visible."""
        meter.create_observable_counter(
            "squall_builder_requests", [lambda _: self._ends()], description="Requests to build by their end."
        )
        meter.create_observable_gauge(
            "squall_builder_running", [lambda _: [Observation(building())]], description="Images being built."
        )

    def _ends(self) -> Iterator[Observation]:
        for end, number in self.builds.items():
            yield Observation(number, {"end": end})
