"""Byte-code of installed distributions, compiled once per machine.

Without it an import is several times slower (pandas 1,986 ms against 357), and compiling is most of an install (5 s of
5.3). Key: interpreter tag and the hash of the distribution's RECORD. Files are shared by hard links, between all
builds: kept is the byte-code of sources that hash to what their RECORD says, since anybody can make a wheel that has
the RECORD of a well-known one. All functions block.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from squall_images import durable

COMPILE_TIMEOUT_S = 1800
PARALLEL_FROM = 100
"""Files above which a pool of processes is worth its start."""


def compile_new(site_packages: Path, python: Path, tag: str, cache: Path) -> None:
    """Give every module below `site_packages` that has none its byte-code, from the cache where possible."""
    missing: dict[Path, dict[Path, str]] = {}
    for record in sorted(site_packages.glob("*.dist-info/RECORD")):
        stored = cache / tag / hashlib.sha256(record.read_bytes()).hexdigest()
        sources = {source: said for source, said in _sources(record) if not _compiled(source, tag).exists()}
        if sources and stored.is_dir():
            sources = {s: said for s, said in sources.items() if not _take(stored, s, site_packages, tag)}
        if sources:
            missing[stored] = sources
    _compile(python, [source for sources in missing.values() for source in sources])
    if missing:
        durable.flush(cache.parent)  # what is kept is linked into other layers for months
    for stored, sources in missing.items():
        if all(_is_what(source, said) for source, said in sources.items()):
            _store(stored, list(sources), site_packages, tag)


def _sources(record: Path) -> Iterator[tuple[Path, str]]:
    """Each module of a distribution, and the hash that its RECORD says."""
    root = record.parent.parent
    for line in record.read_text("utf-8", "replace").splitlines():
        name, said, _ = line.rsplit(",", 2) if line.count(",") > 1 else (line, "", "")
        name = name.strip('"')
        if name.endswith(".py") and not name.startswith("/") and ".." not in name.split("/"):
            source = root / name
            if source.is_file():
                yield source, said


def _is_what(source: Path, said: str) -> bool:
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.read_bytes()).digest()).rstrip(b"=").decode()
    return said == f"sha256={digest}"


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
