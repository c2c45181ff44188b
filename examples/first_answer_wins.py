"""A search in parallel that ends with the first answer: what is still waiting or running then is cancelled.

squall run examples/first_answer_wins.py
"""

import hashlib
import time

import squall

app = squall.App("first-answer-wins")

TEXT = "squall"
ZEROS = "000"
RANGE, RANGES = 2_000, 2_000


def digest(number: int) -> str:
    return hashlib.sha256(f"{TEXT} {number}".encode()).hexdigest()


@app.function(max_containers=4, timeout=60)
def search(start: int) -> int | None:
    """A number from this range whose hash begins with the zeros; most ranges have none, and are slow."""
    for number in range(start, start + RANGE):
        if digest(number).startswith(ZEROS):
            return number
    time.sleep(0.1)
    return None


def first_answer() -> tuple[int, int]:
    """How many ranges were looked at, and what was found. Leaving the loop cancels the other ranges."""
    for asked, found in enumerate(search.map(range(0, RANGES * RANGE, RANGE), order_outputs=False), 1):
        if found is not None:
            return asked, found
    raise LookupError("nobody found anything")


@app.local_entrypoint()
def main() -> None:
    asked, found = first_answer()
    print(f"found after a few of {RANGES} ranges: {asked < 200}")
    print(f"{TEXT} {found} has the hash {digest(found)[:3]}...")
