"""`squall-scheduler`: the scheduler as a process."""

from __future__ import annotations

from squall_scheduler.service import serve
from squall_scheduler.settings import SchedulerSettings
from squall_service.run import run


def main() -> None:
    """Run until a signal; the exit code says how it ended."""
    raise SystemExit(run("scheduler", serve, SchedulerSettings.load))


if __name__ == "__main__":
    main()
