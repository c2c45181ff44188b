"""`squall-images`: bases and disk space of a folder of images, on the machine where it lies."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from squall.errors import SquallError
from squall_images import bases, eviction, host_base
from squall_images.chain import Configuration
from squall_images.layered import LayerFolder

DEFAULT_DIR = "/var/lib/squall/images"
GIB = 1 << 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = _parser().parse_args(arguments)
    folder = LayerFolder(Path(given.dir).absolute())
    try:
        return int(given.run(folder, given) or 0)
    except SquallError as error:
        sys.stderr.write(f"squall-images: {error.message}\n{error.hint}\n")
    except OSError as error:
        sys.stderr.write(f"squall-images: {error}\n")
    return 1


def main_and_exit() -> None:
    """The console script."""
    raise SystemExit(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="squall-images", description=__doc__)
    parser.add_argument("--dir", default=DEFAULT_DIR, help="SQUALL_BUILDER_IMAGES_DIR (default: %(default)s)")
    commands = parser.add_subparsers(required=True)
    base = commands.add_parser("base", help="bases of images").add_subparsers(required=True)
    add = base.add_parser("add", help="register a root file system, a folder or a tar, under a name")
    add.add_argument("name", help="such as debian_slim:3.11, or what Image.from_registry is to find")
    add.add_argument("source", type=Path)
    add.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    add.set_defaults(run=_add)
    host = base.add_parser("host", help="make a base of a CPython of this machine, for development (it has no apt)")
    host.add_argument("name", help="such as debian_slim:3.11")
    host.add_argument("--python", type=Path, default=Path(sys.executable))
    host.set_defaults(run=_host)
    base.add_parser("list", help="names of the bases that are here").set_defaults(run=_list)
    prune = commands.add_parser("prune", help="remove layers that no image needs, and the least used images")
    prune.add_argument("--keep-gib", type=float, default=0.0, help="space that images may keep (default: none)")
    prune.add_argument("--dry-run", action="store_true")
    prune.set_defaults(run=_prune)
    return parser


def _add(folder: LayerFolder, given: argparse.Namespace) -> None:
    env = dict(entry.split("=", 1) for entry in given.env if "=" in entry)
    _told(folder, bases.register(folder, given.name, given.source, Configuration(env=env)).layers[0], given.name)


def _host(folder: LayerFolder, given: argparse.Namespace) -> None:
    found = host_base.register(folder, given.name, given.python)
    _told(folder, found.layers[0], given.name)


def _told(folder: LayerFolder, key: str, name: str) -> None:
    size = int(folder.about(key).get("bytes", 0)) >> 20
    sys.stdout.write(f"✓ {name} is layer {key}, {size} MiB\n")


def _list(folder: LayerFolder, given: argparse.Namespace) -> None:
    for name in folder.base_names():
        if not name.startswith("python:"):
            sys.stdout.write(f"{name}\n")


def _prune(folder: LayerFolder, given: argparse.Namespace) -> None:
    freed = eviction.sweep(folder, int(given.keep_gib * GIB), time.time(), given.dry_run)  # noqa: TID251  # an edge
    did = "Would remove" if given.dry_run else "Removed"
    sys.stdout.write(f"{did} {len(freed.images)} images and {len(freed.layers)} layers, {freed.bytes / GIB:.2f} GiB.\n")
