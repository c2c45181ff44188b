"""Reinforcement learning: many short episodes are spawned for each generation of a policy, and gathered to improve it.

squall run examples/reinforcement_learning.py
squall run examples/reinforcement_learning.py --episodes 500 --generations 10
"""

import random
from statistics import mean

import squall

app = squall.App("reinforcement-learning")

STEPS = 60
Policy = tuple[float, float]


@app.function(timeout=30, max_containers=8)
@squall.concurrent(max_inputs=4)
def episode(policy: Policy, seed: int) -> float:
    """A pole on a cart: how many steps it stays up when the policy pushes. The seed makes it repeatable."""
    dice = random.Random(seed)
    angle, speed = dice.uniform(-0.1, 0.1), 0.0
    for step in range(STEPS):
        push = max(-1.0, min(1.0, policy[0] * angle + policy[1] * speed))
        speed += 0.1 * (2.0 * angle - push) + dice.gauss(0, 0.02)
        angle += 0.1 * speed
        if abs(angle) > 0.5:
            return step
    return STEPS


def improved(tried: list[tuple[float, Policy]], dice: random.Random) -> list[Policy]:
    """The next generation: like the best quarter of this one, with some noise."""
    best = [policy for _, policy in sorted(tried, reverse=True)[: max(1, len(tried) // 4)]]
    centre = mean(a for a, _ in best), mean(b for _, b in best)
    return [(centre[0] + dice.gauss(0, 0.5), centre[1] + dice.gauss(0, 0.5)) for _ in tried]


@app.local_entrypoint()
def main(episodes: int = 40, generations: int = 4) -> None:
    dice = random.Random(3)
    policies = [(dice.gauss(0, 2), dice.gauss(0, 2)) for _ in range(episodes)]
    history = []
    for generation in range(generations):
        calls = [episode.spawn(policy, 1000 * generation + number) for number, policy in enumerate(policies)]
        rewards = squall.FunctionCall.gather(*calls)
        history.append(mean(rewards))
        print(f"generation {generation}: {len(rewards)} episodes, mean reward {history[-1]:.1f}")
        policies = improved(list(zip(rewards, policies, strict=True)), dice)
    print(f"improved: {history[-1] > history[0]}")
