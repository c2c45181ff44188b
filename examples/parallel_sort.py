"""A sort of more numbers than one container should hold: parts are sorted in parallel, then merged in pairs.

squall run examples/parallel_sort.py

Parts are large values: above 64 KiB they travel through the blob store, and only their names through the queue.
"""

import heapq
import itertools
import random
from array import array

import squall

app = squall.App("parallel-sort")

PARTS, NUMBERS_PER_PART = 8, 20_000


@app.function(timeout=60, max_containers=4)
def sort(part: array) -> array:
    return array("q", sorted(part))


@app.function(timeout=60, max_containers=4)
def merge(left: array, right: array) -> array:
    return array("q", heapq.merge(left, right))


@app.local_entrypoint()
def main() -> None:
    dice = random.Random(1)
    parts = [array("q", (dice.randrange(10**9) for _ in range(NUMBERS_PER_PART))) for _ in range(PARTS)]
    total = sum(map(sum, parts))

    parts = list(sort.map(parts))
    rounds = 0
    while len(parts) > 1:
        parts = list(merge.starmap(zip(parts[::2], parts[1::2], strict=True)))
        rounds += 1

    (result,) = parts
    assert all(one <= other for one, other in itertools.pairwise(result))
    print(f"{len(result)} numbers, {PARTS} parts, {rounds} rounds of merging; nothing lost: {sum(result) == total}")
    print("least", result[0], "greatest", result[-1])
