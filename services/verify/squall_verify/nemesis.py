"""The nemesis: injects the planned faults when their time has come, heals each, and says what really happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from squall.errors import LocalPlatformError
from squall_service.clock import SystemClock
from squall_verify.evidence import Happened
from squall_verify.faults import REGISTRY, Hit, NotPossible, Site
from squall_verify.invariants.histories import STALL
from squall_verify.plan import PlannedFault
from squall_verify.waiting import NotInTime

AT_ONCE = 16
STALL_S = 0.5
STALL_TICK_S = 0.1
_CLOCK = SystemClock()


class Nemesis:
    """One run's faults."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self.happened: list[Happened] = []
        self.skipped: list[str] = []
        """What could not be injected, and why."""

    def run(self, planned: Sequence[PlannedFault], started: float) -> None:
        """All of them; returns when the last one is healed. Raises `LocalPlatformError` when the platform has ended."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for fault in planned:
                time.sleep(max(0.0, started + fault.at_s - _CLOCK.now()))
                self._site.platform.check()
                threads.submit(self._one, fault).add_done_callback(lambda done: done.result())

    def _one(self, planned: PlannedFault) -> None:
        began = _CLOCK.now()
        hit: Hit | None = None
        try:
            with ExitStack() as stack:
                hit = stack.enter_context(REGISTRY[planned.name].inject(self._site, planned.given))
                time.sleep(planned.for_s)
        except (NotPossible, NotInTime, LookupError, LocalPlatformError, OSError) as error:
            # A part that is just being started again is no part that can be hurt.
            with self._lock:
                self.skipped.append(f"{planned.name} at {planned.at_s:.1f} s: {error}")
        if hit is not None:
            self.note(planned.name, began, hit)

    def note(self, name: str, began: float, hit: Hit) -> None:
        """It happened, and is over."""
        with self._lock:
            self.happened.append(
                Happened(
                    name=name,
                    began=began,
                    ended=_CLOCK.now(),
                    victim=hit.victim,
                    node=hit.node,
                    pid=hit.pid,
                    detail=hit.detail,
                    skew_s=hit.skew_s,
                )
            )

    def watch_stalls(self, over: threading.Event) -> None:
        """Notes when this machine stood still: nobody can keep a time limit then."""
        before = _CLOCK.monotonic()
        while not over.wait(STALL_TICK_S):
            now = _CLOCK.monotonic()
            late_s = now - before - STALL_TICK_S
            if late_s > STALL_S:
                self.note(STALL, _CLOCK.now() - late_s, Hit("this machine"))
            before = now
