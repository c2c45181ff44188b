"""`squall-gpu-agent`: the agent as a process."""

from __future__ import annotations

from squall_gpu_agent.service import GRACE_S, serve
from squall_gpu_agent.settings import AgentSettings
from squall_service.run import run


def main() -> None:
    """Run until a signal; the exit code says how it ended."""
    raise SystemExit(run("gpu-agent", serve, AgentSettings.load, grace_s=GRACE_S))


if __name__ == "__main__":
    main()
