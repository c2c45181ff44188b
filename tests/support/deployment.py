"""The files of deploy/ and compose.yaml as tests read them: through Docker Compose itself, in a copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import compose

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = Path(compose.__file__).with_name("docker-compose")
"""The program itself; the wheel's own wrapper always ends with status 0."""


class Site:
    """A copy of what a deployment needs, set up as an operator does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("site"))
        shutil.copy(ROOT / "compose.yaml", folder)

    def setup(self, *nodes: str) -> str:
        """Runs `deploy/setup`; what it printed."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        child = subprocess.run(
            [self.folder / "deploy" / "setup", *nodes],
            env={**neutral(), "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert child.returncode == 0, child.stderr
        return child.stdout

    def secrets(self) -> dict[str, str]:
        """The variables of `.env`."""
        return dict(line.split("=", 1) for line in (self.folder / ".env").read_text().splitlines())

    def config(self, *profiles: str, **variables: str) -> dict[str, Any]:
        """compose.yaml with every variable replaced, by these or by what stands there."""
        chosen = [word for profile in profiles for word in ("--profile", profile)]
        child = subprocess.run(
            [COMPOSE, *chosen, "config", "--format", "json"],
            cwd=self.folder,
            env={**neutral(), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert child.returncode == 0, child.stderr
        config: dict[str, Any] = json.loads(child.stdout)
        return config


def neutral() -> dict[str, str]:
    """Our environment without squall's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SQUALL_")}
