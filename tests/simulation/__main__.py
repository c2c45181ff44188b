"""`python -m tests.simulation --seed 7 -v` plays one seed with its trace; `--seeds 0 10000` a range on all cores."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from tests.simulation.mutations import MUTATIONS
from tests.simulation.options import CROSSED
from tests.simulation.running import REPLAY, play, play_many, settle_hashes

ROOT = Path(__file__).parents[2]
LAST_EVENTS = 60


def main() -> int:
    """Returns 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help=f"play this one; from {CROSSED} on they are crossed runs")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FROM", "TO"), help="play these, the last one not")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="with this bug put in")
    parser.add_argument("-v", "--verbose", action="store_true", help="the seed's options and all of its events")
    given = parser.parse_args()
    settle_hashes()
    if given.seed is not None:
        return one(given.seed, given.mutation, verbose=given.verbose)
    first, end = given.seeds or (0, 1000)
    found = play_many(first, end, workers=given.workers, mutation=given.mutation)
    for failure in found.failures:
        print(f"seed {failure.seed}: {failure.violations[0]}\n    {REPLAY.format(seed=failure.seed)}")
    print(
        f"{found.seeds} seeds, {len(found.failures)} failed, {1000 * found.cpu_s / max(1, found.seeds):.1f} ms CPU each"
    )
    print(" ".join(f"{name}={number}" for name, number in sorted(Counter(found.counts).items())))
    return 1 if found.failures else 0


def one(seed: int, mutation: str | None, *, verbose: bool) -> int:
    """Play one seed and tell what happened."""
    world, cpu_s = play(seed, mutation)
    if verbose or world.violations:
        print(world.options.describe())
        print(world.trace(400 if verbose else LAST_EVENTS))
    for violation in world.violations:
        print(f"VIOLATION {violation}")
    seconds = world.loop.time()
    print(f"seed {seed}: {seconds:.0f} s in {1000 * cpu_s:.0f} ms CPU, {len(world.violations)} violations")
    return 1 if world.violations else 0


if __name__ == "__main__":
    sys.exit(main())
