"""Retries: a function that fails now and then, repeated with growing delays until it works.

squall run examples/flaky_service.py
"""

import tempfile
from pathlib import Path

import squall

app = squall.App("flaky-service")

# First retry after 0.1 s, then 0.2 s, 0.4 s ...
patient = squall.Retries(max_retries=4, initial_delay=0.1, backoff_coefficient=2.0)


class ServiceDown(Exception):
    """What the other side answers when it does not feel like it."""


@app.function(retries=patient, timeout=30)
def fetch(order: int, diary: str) -> str:
    # The diary is how this demonstration remembers: an attempt knows nothing of the one before it.
    tries = Path(diary) / str(order)
    with tries.open("a") as file:
        file.write("tried\n")
    attempt = len(tries.read_text().splitlines())
    if attempt <= order % 3:
        raise ServiceDown(f"order {order}: attempt {attempt} failed")
    return f"order {order} after {attempt} attempt{'s' if attempt > 1 else ''}"


@app.function(retries=1)
def hopeless() -> None:
    raise ServiceDown("closed for ever")


@app.local_entrypoint()
def main() -> None:
    with tempfile.TemporaryDirectory() as diary:
        for answer in fetch.map(range(6), kwargs={"diary": diary}):
            print(answer)
    try:
        hopeless.remote()
    except ServiceDown as error:
        print("given up:", error)
