"""Byte-code of installed distributions, compiled once per machine.

Without it an import is several times slower (pandas 1,986 ms against 357), and compiling is most of an install (5 s of
5.3). Key: interpreter tag and the hash of the distribution's RECORD. Files are shared by hard links. All functions
block.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

COMPILE_TIMEOUT_S = 1800
PARALLEL_FROM = 100
"""Files above which a pool of processes is worth its start."""


def compile_new(site_packages: Path, python: Path, tag: str, cache: Path) -> None:
    """Give every module below `site_packages` that has none its byte-code, from the cache where possible."""
    missing: dict[Path, list[Path]] = {}
    for record in sorted(site_packages.glob("*.dist-info/RECORD")):
        stored = cache / tag / hashlib.sha256(record.read_bytes()).hexdigest()
        sources = [source for source in _sources(record) if not _compiled(source, tag).exists()]
        if sources and stored.is_dir():
            sources = [source for source in sources if not _take(stored, source, site_packages, tag)]
        if sources:
            missing[stored] = sources
    _compile(python, [source for sources in missing.values() for source in sources])
    for stored, sources in missing.items():
        _store(stored, sources, site_packages, tag)


def _sources(record: Path) -> Iterator[Path]:
    root = record.parent.parent
    for line in record.read_text("utf-8", "replace").splitlines():
        name = line.rsplit(",", 2)[0].strip('"')
        if name.endswith(".py") and not name.startswith(("..", "/")):
            source = root / name
            if source.is_file():
                yield source


def _compiled(source: Path, tag: str) -> Path:
    return source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"


def _take(stored: Path, source: Path, root: Path, tag: str) -> bool:
    target = _compiled(source, tag)
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(stored / f"{source.relative_to(root)}c", target)
    except OSError:
        return False
    return True


def _compile(python: Path, sources: list[Path]) -> None:
    if not sources:
        return
    # unchecked-hash: the environment never changes, and a source that another machine unpacked has another mtime.
    workers = "0" if len(sources) > PARALLEL_FROM else "1"
    options = ["-q", "-j", workers, "--invalidation-mode", "unchecked-hash", "-i", "-"]
    # A distribution may ship files that are no valid Python (templates, tests of parsers): no reason to fail.
    subprocess.run(
        [str(python), "-I", "-m", "compileall", *options],
        input="\n".join(map(str, sources)),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin"},
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )


def _store(stored: Path, sources: list[Path], root: Path, tag: str) -> None:
    stored.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=stored.parent, prefix=".new-"))
    for source in sources:
        compiled = _compiled(source, tag)
        if compiled.exists():
            target = staging / f"{source.relative_to(root)}c"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(compiled, target)
    try:
        os.rename(staging, stored)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)  # somebody else stored it; what was there stays
