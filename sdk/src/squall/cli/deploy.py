"""`squall deploy`: makes an app stay, under its name."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from squall.cli import entries, program, screen, server
from squall.cli.reference import parse
from squall.errors import InvalidError

if TYPE_CHECKING:
    from squall.app import App


@dataclass(frozen=True)
class DeployOptions:
    """The options of the command."""

    name: Optional[str] = None
    tag: str = ""
    strategy: str = "rolling"
    environment: Optional[str] = None
    as_module: bool = False
    stream_logs: bool = False
    timestamps: bool = False


def deploy(text: str, options: DeployOptions) -> int:
    """Deploys the app that `text` points at."""
    name = options.name
    reference = parse(text, options.as_module)
    server.must_outlive("A deployed app")
    app = entries.choose_app(program.load(reference), reference)
    if not app.registered_functions and not app.registered_classes:
        raise InvalidError(
            f"the app of {reference.text} has no functions",
            fix="Decorate what it should offer with `@app.function()` or `@app.cls()`.",
        )
    began = time.monotonic()
    with screen.shown(quiet=False, timestamps=options.timestamps) as out, server.for_command() as session:
        out.doing("Deploying")
        environment = options.environment or session.environment
        app.deploy(name=name, environment_name=environment, tag=options.tag, strategy=options.strategy)
        out.doing("")
    state = app.state
    assert state is not None
    took = time.monotonic() - began
    shown_name = name or app.name or ""
    if out.unchanged:
        sys.stdout.write(f"Deployment skipped: {shown_name} has not changed since version {state.version}.\n")
    else:
        _tell(app, shown_name, options, took)
    return _stream(state.app_id, options) if options.stream_logs else 0


def _tell(app: App, shown_name: str, options: DeployOptions, took: float) -> None:
    """What was deployed, and how it is called."""
    state = app.state
    assert state is not None
    version = f"version {state.version}" + (f", {options.tag}" if options.tag else "")
    sys.stdout.write(f"✓ App deployed in {took:.3f} s: {shown_name}, {version} ({state.app_id}).\n")
    for function in state.functions:
        kind = "Cls" if function in app.registered_classes else "Function"
        sys.stdout.write(f'  squall.{kind}.from_name("{shown_name}", "{function}")\n')


def _stream(app_id: str, options: DeployOptions) -> int:
    """What its containers write from now on; the app stays when this is ended."""
    from squall.cli.logs import Before, logs
    from squall.logs import Wanted

    sys.stdout.flush()
    try:
        before = Before(time=options.timestamps)
        return logs(app_id, Wanted(tail=0), follow=True, before=before, environment=None, as_json=False)
    except KeyboardInterrupt:
        return 0
