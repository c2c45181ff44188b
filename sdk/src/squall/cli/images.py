"""`squall image`: images that were built: a list, one in full, what its build printed."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Optional
from urllib.parse import quote

from squall.cli import table
from squall.cli.server import for_command
from squall.client import query
from squall.http_api.images import ImageInfo
from squall.http_api.routes import Route
from squall.published_images import checked_name
from squall.spec import from_wire

COLUMNS = (
    *(("IMAGE", "image"), ("STATE", "state"), ("PYTHON", "python"), ("PACKAGES", "count"), ("LAYERS", "depth")),
    *(("BUILT", "built"), ("TOOK", "took"), ("NAMES", "names")),
)


def list_images(*, environment: Optional[str], as_json: bool) -> int:
    """Prints the images of the workspace."""
    with for_command() as session:
        path = query(Route.IMAGES, environment=environment or session.environment)
        rows = [from_wire(ImageInfo, row) for row in session.client.json("GET", path)["images"]]
    shown = [_row(image) for image in rows]
    plain = [dataclasses.asdict(image) for image in rows]
    table.show(plain if as_json else shown, COLUMNS, as_json=as_json, empty="No images were built.")
    return 0


def _row(image: ImageInfo) -> dict[str, Any]:
    return {
        **dataclasses.asdict(image),
        "count": len(image.packages),
        "depth": len(image.layers) or None,
        "built": table.ago(image.updated_at),
        "took": f"{image.build_ms / 1000:.1f} s" if image.build_ms else None,
    }


def inspect(name: str, *, environment: Optional[str], as_json: bool) -> int:
    """Prints one image: its steps, packages and layers."""
    with for_command() as session:
        place = environment or session.environment
        found = from_wire(ImageInfo, session.client.json("GET", query(_path(name), environment=place)))
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(found), indent=2) + "\n")
        return 0
    lines = [("image", found.image), ("state", found.state), ("python", found.python or "-")]
    lines += [("built", table.ago(found.updated_at)), ("names", ", ".join(found.names) or "-")]
    lines += [("error", found.error)] if found.error else []
    steps = (found.spec or {}).get("steps", ())
    lines += [("step", _step(step)) for step in steps]
    lines += [("layer", key) for key in found.layers]
    lines += [("package", package) for package in found.packages]
    for label, text in lines:
        sys.stdout.write(f"{label:<8} {text}\n")
    return 0


def _step(step: dict[str, Any]) -> str:
    arguments = {name: value for name, value in step["arguments"].items() if not name.startswith("_")}
    shown = json.dumps(arguments, sort_keys=True)
    return f"{step['kind']} {shown if len(shown) <= 200 else shown[:197] + '...'}"


def logs(name: str, *, environment: Optional[str]) -> int:
    """Prints what its builds printed."""
    with for_command() as session:
        place = environment or session.environment
        image = name
        if not name.startswith("im-"):
            image = session.client.json("GET", query(_path(name), environment=place))["image"]
        with session.client.stream("GET", Route.IMAGE_LOGS.format(image=image)) as stream:
            for line in stream.lines():
                sys.stdout.write(line["text"])
    return 0


def _path(name: str) -> str:
    if name.startswith("im-"):
        return Route.IMAGE.format(image=quote(name, safe=""))
    return Route.IMAGE_NAME.format(name=quote(checked_name(name), safe=""))
