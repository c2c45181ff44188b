"""Batch inference: a model that is loaded once per container scores a large table, part by part, in parallel.

squall run examples/batch_inference.py
squall run examples/batch_inference.py --rows 100000
"""

import os
import random

import squall

app = squall.App("batch-inference")

ROWS_PER_PART = 500


@app.cls(max_containers=4, timeout=60)
class Classifier:
    @squall.enter()
    def load(self) -> None:
        """Once per container, before its first part: this is where weights go into memory or onto a GPU."""
        self.weights = [0.8, -0.5, 0.3]
        self.threshold = 0.25

    @squall.method()
    def score(self, part: list[list[float]]) -> tuple[int, list[bool]]:
        """The container that did it, and one answer for each row. Large parts travel beside the queue, not in it."""
        scores = (sum(w * x for w, x in zip(self.weights, row, strict=True)) for row in part)
        return os.getpid(), [score > self.threshold for score in scores]


def read_table(rows: int) -> list[list[float]]:
    """Stands in for your table."""
    dice = random.Random(7)
    return [[dice.random() for _ in range(3)] for _ in range(rows)]


@app.local_entrypoint()
def main(rows: int = 10_000) -> None:
    table = read_table(rows)
    parts = [table[start : start + ROWS_PER_PART] for start in range(0, rows, ROWS_PER_PART)]

    answers: list[bool] = []
    containers = set()
    for container, part in Classifier().score.map(parts):  # in the order of the table
        containers.add(container)
        answers += part
    print(f"{len(answers)} rows in {len(parts)} parts by at most 4 containers: {len(containers) <= 4}")
    print(f"{sum(answers)} positive, {100 * sum(answers) / len(answers):.1f} %")
