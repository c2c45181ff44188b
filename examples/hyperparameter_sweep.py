"""A hyperparameter sweep: one training for each combination, all at the same time, the best one at the end.

squall run examples/hyperparameter_sweep.py
"""

import itertools
import random
from dataclasses import dataclass

import squall

app = squall.App("hyperparameter-sweep")


@dataclass(frozen=True)
class Trial:
    """Arguments and results may be of any class that pickle can send."""

    rate: float
    batch: int
    momentum: float


@dataclass(frozen=True)
class Outcome:
    trial: Trial
    loss: float
    slope: float


def data(seed: int, count: int) -> list[tuple[float, float]]:
    """Points near y = 3 x."""
    dice = random.Random(seed)
    return [(x, 3 * x + dice.gauss(0, 0.1)) for x in (dice.uniform(-1, 1) for _ in range(count))]


@app.function(cpu=0.5, timeout=120, retries=1)
def train(trial: Trial) -> Outcome:
    slope, velocity = 0.0, 0.0
    points = data(1, 400)
    for start in range(0, len(points), trial.batch):
        batch = points[start : start + trial.batch]
        gradient = sum(2 * (slope * x - y) * x for x, y in batch) / len(batch)
        velocity = trial.momentum * velocity - trial.rate * gradient
        slope += velocity
    held_out = data(2, 100)
    return Outcome(trial, sum((slope * x - y) ** 2 for x, y in held_out) / len(held_out), slope)


@app.local_entrypoint()
def main() -> None:
    grid = [Trial(*values) for values in itertools.product([0.001, 0.01, 0.1, 2.5], [4, 16, 64], [0.0, 0.9])]
    outcomes = sorted(train.map(grid, order_outputs=False), key=lambda outcome: outcome.loss)
    best = outcomes[0]
    print(f"{len(outcomes)} trials")
    print(f"best: rate {best.trial.rate}, batches of {best.trial.batch}, momentum {best.trial.momentum}")
    print(f"loss {best.loss:.4f}, slope {best.slope:.2f}")
    print(f"{sum(outcome.loss > 1 for outcome in outcomes)} trials learned nothing")
