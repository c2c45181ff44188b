"""squall and its peers on the same work: alternating, one at a time, one table.

    scripts/bench peers                     all engines, two rounds, about 12 minutes; writes benchmarks/RESULTS.md
    scripts/bench peers --quick             200 calls of each, one round: whether everything works, no figures to quote
    scripts/bench peers --only squall,ray   some engines
    scripts/bench peers --for 200           starts no session after 200 s; the same command goes on from there

Peers are installed from their packages into venvs below --cache at the first use (about 700 MB). Nothing else is left.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.calls import commit, machine
from benchmarks.peers import sessions
from benchmarks.peers.peers import PEERS, Peer, named
from benchmarks.peers.record import Record
from benchmarks.peers.table import Table
from benchmarks.peers.works import DEPTHS, WORKS, sized

RESULTS = Path(__file__).resolve().parents[1] / "RESULTS.md"
QUICK_CALLS = 200
QUICK_DEPTHS = (1_000, 20_000)
ROUNDS = 2


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--quick",
        type=int,
        nargs="?",
        const=QUICK_CALLS,
        metavar="CALLS",
        help=f"at most so many calls of each ({QUICK_CALLS}), one round; writes no file",
    )
    parser.add_argument("--only", default=",".join(p.name for p in PEERS), help="engines, separated by commas")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument(
        "--for", dest="for_s", type=float, default=float("inf"), help="seconds; then stop, to go on later"
    )
    parser.add_argument("--fresh", action="store_true", help="forget an unfinished run")
    parser.add_argument("--skip-depth", action="store_true", help="without the depth test")
    cache = Path(tempfile.gettempdir()) / f"squall-peers-{os.getuid()}"
    parser.add_argument("--cache", type=Path, default=cache, help="folder of venvs and of the unfinished run")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or (given.quick is not None and given.quick < 1):
        parser.error("--rounds and --quick must be at least 1")
    given.rounds = 1 if given.quick else given.rounds
    return given


def orders(given: argparse.Namespace) -> list[sessions.Order]:
    """Every session in order: each round begins with another engine, so that none is always first."""
    peers = [named(name) for name in given.only.split(",")]
    wanted = []
    for number in range(given.rounds):
        first = number % len(peers)
        wanted += [order(peer, number, given) for peer in peers[first:] + peers[:first]]
    return wanted


def order(peer: Peer, number: int, given: argparse.Namespace) -> sessions.Order:
    """What one engine does in one round; the depth test is in the first."""
    at_most = given.quick
    deep = peer.deep and number == 0 and not given.skip_depth
    return sessions.Order(
        peer=peer,
        round=number,
        works=sized(WORKS, rounds=given.rounds, slow=peer.slow, at_most=at_most),
        depths=(QUICK_DEPTHS if given.quick else DEPTHS) if deep else (),
    )


def measure(given: argparse.Namespace, record: Record) -> bool:
    """Runs what has not been run yet; whether that is everything."""
    began = time.monotonic()
    for wanted in orders(given):
        key = (wanted.peer.name, wanted.round)
        if key in record.done:
            continue
        if time.monotonic() - began > given.for_s:
            return False
        print(f"peers: round {wanted.round + 1} of {given.rounds}, {wanted.peer.name}", file=sys.stderr, flush=True)
        record.add(*key, sessions.run(wanted, given.cache))
    return True


def main() -> int:
    given = parse(sys.argv[1:])
    given.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (given.cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would measure each other
        about = {"commit": commit(), "machine": machine(), "rounds": str(given.rounds), "quick": str(given.quick)}
        name = "quick.jsonl" if given.quick else "run.jsonl"
        record = Record(given.cache / name, about, fresh=given.fresh or given.quick)
        whole = measure(given, record)
    peers = [named(name) for name in given.only.split(",")]
    today = datetime.datetime.now(datetime.UTC).date()
    conditions = f"{today}, {about['commit']}, {about['machine']}; {given.rounds} rounds, engines one at a time."
    text = f"{conditions}\n\n{Table(peers, record.samples).render()}"
    print(text)
    if not whole:
        print("peers: not finished; the same command goes on from here", file=sys.stderr)
        return 3
    if not given.quick:
        command = "scripts/bench " + " ".join(["peers", *sys.argv[1:]])
        RESULTS.write_text(f"# squall and its peers\n\n```sh\n{command}\n```\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
