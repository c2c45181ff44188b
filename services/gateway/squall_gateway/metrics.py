"""Counts of the gateway, read by the meter when somebody scrapes: counting itself is one addition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from opentelemetry.metrics import CallbackOptions, Meter, Observation


class Requests:
    """Answered requests by route and status, refusals by code, accepted inputs by kind."""

    def __init__(self) -> None:
        self._answered: Counter[tuple[str, int]] = Counter()
        self.accepted: Counter[str] = Counter()
        """Inputs in the journal, by kind of call."""

    def count(self, route: str, status: int) -> None:
        """One request is over; status 0 = the client went before the answer began."""
        self._answered[route, status] += 1

    def observe(self, meter: Meter, waits: Callable[[], int]) -> None:
        """Make everything visible."""
        meter.create_observable_counter(
            "squall_gateway_requests", [self._requests], description="Answered requests by route and status."
        )
        meter.create_observable_counter(
            "squall_gateway_inputs_accepted", [self._inputs], description="Inputs stored in the journal by kind."
        )
        meter.create_observable_gauge(
            "squall_gateway_waits", [lambda _: one(waits())], description="Requests that wait for a result."
        )

    def _requests(self, _: CallbackOptions) -> Iterator[Observation]:
        for (route, status), number in self._answered.items():
            yield Observation(number, {"route": route, "status": status})

    def _inputs(self, _: CallbackOptions) -> Iterator[Observation]:
        for kind, number in self.accepted.items():
            yield Observation(number, {"kind": kind})


def one(value: int) -> Iterable[Observation]:
    """A single value without attributes."""
    return [Observation(value)]
