"""`squall-builder`: the builder as a process."""

from __future__ import annotations

from squall_builder.service import serve
from squall_builder.settings import BuilderSettings
from squall_service.run import run


def main() -> None:
    """Run until a signal; the exit code says how it ended."""
    raise SystemExit(run("builder", serve, BuilderSettings.load))


if __name__ == "__main__":
    main()
