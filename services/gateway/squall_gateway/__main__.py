"""`squall-gateway`: the gateway as a process."""

from __future__ import annotations

from squall_gateway.service import serve
from squall_gateway.settings import GatewaySettings
from squall_service.run import run


def main() -> None:
    """Run until a signal; the exit code says how it ended."""
    raise SystemExit(run("gateway", serve, GatewaySettings.load))


if __name__ == "__main__":
    main()
