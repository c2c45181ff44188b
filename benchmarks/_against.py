"""This tree against another revision: the same benchmark on both platforms in turns, and the ratios of its figures.

    scripts/bench --against v0.1.0 calls --processes --only warm,map
    scripts/bench --against HEAD~3 --rounds 5 hops

The benchmark is this tree's for both; the platform below it is each revision's own, in a worktree and a .venv that are
made for it and removed afterwards. Every number of every Markdown row is compared, as the median of all rounds. Nothing
fails by being slow: the reader decides, knowing how far rounds of one revision are apart (last column).
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\()")
NOT_COMPARED = "detail"


class Figure(NamedTuple):
    """Which number of a benchmark's output."""

    row: str
    column: str
    place: int
    """In its cell."""


def figures_in(output: str) -> dict[Figure, float]:
    """Every number of every Markdown table."""
    found: dict[Figure, float] = {}
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines() if line[:1] == "|"]
    header: list[str] = []
    for cells, after in zip(lines, [*lines[1:], []], strict=True):
        if after and set(after[0]) == {"-"}:
            header = [re.sub(r" \(.*", "", cell) for cell in cells]  # "map (940/s)": a rate is no name
        elif set(cells[0]) != {"-"}:
            for column, cell in list(zip(header, cells, strict=False))[1:]:
                if column != NOT_COMPARED:
                    for place, number in enumerate(NUMBER.findall(cell)):
                        found[Figure(cells[0], column, place)] = float(number.replace(",", ""))
    return found


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A worktree of the revision with its own .venv."""
    folder = Path(tempfile.mkdtemp(prefix="squall-against-"))
    try:
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", folder / "tree", revision], cwd=TREE, check=True
        )
        subprocess.run([folder / "tree/scripts/setup"], check=True)
        yield folder / "tree"
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder / "tree"], cwd=TREE, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def run(tree: Path, name: str, options: list[str]) -> dict[Figure, float]:
    """One round on the platform of a tree."""
    command: list[str | Path] = [tree / ".venv/bin/python", TREE / f"benchmarks/{name}.py", *options]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=tree)
    if answer.returncode:
        raise SystemExit(f"{name} failed on {tree} (status {answer.returncode}): its output was\n{answer.stdout}")
    return figures_in(answer.stdout)


def compare(name: str, options: list[str], revision: str, other: Path, rounds: int) -> None:
    found: dict[Path, dict[Figure, list[float]]] = {TREE: defaultdict(list), other: defaultdict(list)}
    for number in range(rounds):
        for tree in (TREE, other) if number % 2 else (other, TREE):
            print(f"round {number + 1} of {rounds}: {'this tree' if tree == TREE else revision}", file=sys.stderr)
            for figure, value in run(tree, name, options).items():
                found[tree][figure].append(value)
    print(f"\n| {name} | figure | this tree | {revision} | ratio | spread of this tree |\n|---|---|---|---|---|---|")
    for figure, mine in found[TREE].items():
        theirs = found[other].get(figure)
        if theirs is None:
            continue
        now, then = statistics.median(mine), statistics.median(theirs)
        column = f"{figure.column} {figure.place + 1}" if figure.place else figure.column
        ratio, spread = (f"{now / then:.2f}" if then else ""), (f"{min(mine):g} to {max(mine):g}")
        print(f"| {figure.row} | {column} | {now:g} | {then:g} | {ratio} | {spread} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("revision", help="what to compare with: anything that git understands")
    parser.add_argument("--rounds", type=int, default=3, help="of each, in turns")
    parser.add_argument("benchmark", help="name of a file in benchmarks/")
    given, options = parser.parse_known_args()
    if not (TREE / f"benchmarks/{given.benchmark}.py").is_file():
        parser.error(f"there is no benchmarks/{given.benchmark}.py")
    with checked_out(given.revision) as other:
        compare(given.benchmark, options, given.revision, other, given.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
