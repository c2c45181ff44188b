"""The process in which `squall serve` loads the program once: publishes it, tells what it is made of, ends."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from squall import output, publish, session
from squall.app import App
from squall.cli import entries, failure, program
from squall.cli.reference import parse
from squall.cli.screen import PlainScreen
from squall.errors import ConflictError, InvalidError


def main() -> int:
    """Loads and publishes what its argument asks for; its answer goes to the descriptor named there."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    sys.argv[:] = [wanted["reference"]]
    try:
        answer = load(wanted)
    except BaseException as error:  # noqa: BLE001 - the last place: everything becomes a message and a status
        return failure.report(error)
    with open(wanted["answer"], "w", encoding="utf-8") as out:
        json.dump(answer, out)
    return 0


def load(wanted: dict[str, Any]) -> dict[str, Any]:
    """Publish the program; into the app that is there, unless that was stopped meanwhile."""
    reference = parse(wanted["reference"], wanted["as_module"])
    app = entries.choose_app(program.load(reference), reference)
    if not app.registered_functions and not app.registered_classes:
        raise InvalidError(
            f"the app of {reference.text} has no functions",
            fix="Decorate what it should offer with `@app.function()` or `@app.cls()`.",
        )
    name = publish.ephemeral_name(app, wanted["name"] or app.name)
    with output.use(PlainScreen(quiet=False, timestamps=False)):
        try:
            state = _publish(app, name, wanted, wanted["app_id"])
        except ConflictError:
            if wanted["app_id"] is None:
                raise
            state = _publish(app, name, wanted, None)
    return {"app_id": state.app_id, "name": name, "functions": state.functions, "files": files_of(app)}


def _publish(app: App, name: str, wanted: dict[str, Any], into: Any) -> Any:
    here = session.current()
    return publish.publish(app, here, "ephemeral", name, wanted["environment"], publish.Release(into)).state


def files_of(app: App) -> list[str]:
    """Everything that the app is made of on this machine: what is sent to containers, and what was imported here."""
    sent = publish.local_files(app)
    here = os.getcwd() + os.sep
    loaded = {str(getattr(module, "__file__", "") or "") for module in list(sys.modules.values())}
    mine = {file for file in loaded if file.startswith(here) and f"{os.sep}site-packages{os.sep}" not in file}
    return sorted(sent | mine)


if __name__ == "__main__":
    sys.exit(main())
