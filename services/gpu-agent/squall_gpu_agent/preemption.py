"""Preemption: notices that this machine will be taken away, and how much of the time that is left containers get.

A notice is a file, because every cloud's own way (metadata to poll, an event, a signal) can be turned into one with a
line of shell. Owns no container.
"""

from __future__ import annotations

from pathlib import Path

from squall_gpu_agent.settings import AgentSettings
from squall_service.clock import Clock
from squall_service.telemetry import log

NOTICE_LOOK_S = 0.5
EXIT_S = 3.0
"""For `@exit` hooks of containers whose inputs did not finish in time."""
MOST_S = 7 * 86_400.0
HANDOVER_S = 5.0
"""Of the notice: to stop what runs (EXIT_S) and to give its inputs back, so that they run elsewhere at once and not
when their lease is over."""


class Notice:
    """Looks whether there is one."""

    def __init__(self, settings: AgentSettings, clock: Clock) -> None:
        self._file = Path(settings.preemption_file) if settings.preemption_file else None
        self._notice_s = settings.preemption_notice_s
        self._drain_s = settings.drain_s
        self._preemptible = settings.can_be_taken_away()
        self._clock = clock
        self._leaving_at = 0.0

    @property
    def expected(self) -> bool:
        """Whether there is a file to look for."""
        return self._file is not None

    def leaving_at(self) -> float:
        """When the machine will be gone; 0 = there is no notice, or it was taken back."""
        text = self._text()
        if text is None:
            if self._leaving_at:
                log.info("preemption_taken_back", file=str(self._file))
            self._leaving_at = 0.0
        elif not self._leaving_at:
            # Counted from now: the clock that wrote the file may be another one.
            left_s = self._left_s(text)
            self._leaving_at = self._clock.now() + left_s
            log.warning("preemption_notice", file=str(self._file), left_s=left_s)
        return self._leaving_at

    def time_to_finish_s(self, leaving_at: float) -> float:
        """How long what runs may go on."""
        return max(0.0, leaving_at - self._clock.now() - HANDOVER_S)

    def drain_s(self) -> float:
        """The same when the agent itself is told to stop: on a preemptible machine that is a notice."""
        return min(self._drain_s, max(0.0, self._notice_s - HANDOVER_S)) if self._preemptible else self._drain_s

    def _text(self) -> str | None:
        if self._file is None:
            return None
        try:
            return self._file.read_text(errors="replace")[:100].strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("preemption_file_unreadable", file=str(self._file), reason=str(error))
            return ""  # it is there: to leave for nothing costs less than to lose everything

    def _left_s(self, text: str) -> float:
        try:
            return min(MOST_S, max(0.0, float(text))) if text else self._notice_s
        except ValueError:
            log.warning("preemption_file_not_understood", file=str(self._file), text=text, expected="seconds")
            return self._notice_s
