"""`squall image prune`: images that nothing needs leave builders, nodes and the registry."""

from __future__ import annotations

import sys

from squall.cli import logs, table
from squall.cli.server import for_command
from squall.http_api.images import PrunedImages
from squall.http_api.routes import Route
from squall.spec import from_wire

REMOVING_S = 900.0
COLUMNS = (
    *(("WHERE", "where"), ("IMAGES", "images"), ("LAYERS", "layers"), ("FREED", "freed"), ("STAYS", "stays")),
    *(("REGISTRY", "in_registry"), ("NOTE", "error")),
)


def prune(*, dry_run: bool, older_than: str) -> int:
    """Prints what was removed where; 1 if some of it could not be."""
    body = {"dry_run": dry_run, "older_than_s": logs.seconds(older_than, "--older-than")}
    with for_command() as session:
        found = from_wire(PrunedImages, session.client.json("POST", Route.IMAGES_PRUNE, body, timeout_s=REMOVING_S))
    if not found.images and not found.stores:
        sys.stdout.write("Every image is needed, or was asked for too short a while ago.\n")
        return 0
    for image in found.images:
        sys.stdout.write(f"{image}\n")
    did = "Would remove" if dry_run else "Removed"
    sys.stdout.write(f"{did} {len(found.images)} images.\n")
    rows = [
        {
            "where": f"{store.kind} {store.name}",
            "images": store.images,
            "layers": store.layers,
            "freed": mebibytes(store.bytes),
            "stays": mebibytes(store.kept_bytes),
            "in_registry": store.in_registry or None,
            "error": store.error or None,
        }
        for store in found.stores
    ]
    table.show(rows, COLUMNS, as_json=False, empty="")
    return 1 if any(store.error for store in found.stores) else 0


def mebibytes(count: int) -> str:
    """For tables."""
    return f"{count / (1 << 20):.1f} MiB"
