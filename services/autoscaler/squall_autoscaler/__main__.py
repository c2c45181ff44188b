"""`squall-autoscaler`: the autoscaler as a process."""

from __future__ import annotations

from squall_autoscaler.service import serve
from squall_autoscaler.settings import AutoscalerSettings
from squall_service.run import run


def main() -> None:
    """Run until a signal; the exit code says how it ended."""
    raise SystemExit(run("autoscaler", serve, AutoscalerSettings.load))


if __name__ == "__main__":
    main()
